//! What the path of a Hub cache tells: repository and revision.

use std::path::Path;

/// Repository and revision of a snapshot in the Hugging Face cache
/// (`models--org--name/snapshots/<revision>`).
pub(crate) fn repository(dir: &Path) -> Option<(String, String)> {
    let dir = std::path::absolute(dir).ok()?;
    let revision = dir.file_name()?.to_str()?;
    let snapshots = dir.parent()?;
    let repository = snapshots.parent()?.file_name()?.to_str()?;
    if snapshots.file_name()?.to_str()? != "snapshots" {
        return None;
    }
    let name = repository.strip_prefix("models--")?.replace("--", "/");
    Some((name, revision.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_names_its_repository() {
        let dir = Path::new("/c/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de3");
        assert_eq!(repository(dir), Some(("meta-llama/Llama-3.2-1B".into(), "4e20de3".into())));
        assert_eq!(repository(Path::new("/models/llama")), None);
    }
}
