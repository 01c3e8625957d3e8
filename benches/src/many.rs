//! A home with many Complete Models in its catalogue, without their weights.

use std::path::Path;

use tenon_registry::catalogue::{self, Catalogue, SqliteCatalogue};
use tenon_registry::{CompleteModel, ModelName, ModelSummary, Timestamp, Uuid};

/// Makes a home at a directory and lists so many Complete Models in it.
///
/// # Panics
///
/// Where the disk does not let it.
pub fn home_with_models(home: &Path, models: u64) {
    std::fs::create_dir_all(home.join("complete")).expect("a home can be made");
    let (catalogue, _) = SqliteCatalogue::open(&home.join("catalogue.db")).expect("a catalogue can be made");
    let name = |text: String| ModelName::new(text).expect("a name");
    catalogue
        .transaction(&mut |change| {
            for i in 0..models {
                let saving = Uuid::from_u128(u128::from(i) << 96 | 0x4000_8000_0000_0000_0000);
                let customized = name(format!("Llama-3.2-1B_run-{i}_20260309_{:04x}", i % 65536));
                let model = CompleteModel {
                    name: name(format!("{customized}_s_{:04x}", i % 65536)),
                    saving,
                    customized,
                    base: name("Llama-3.2-1B".into()),
                    created: Timestamp::from_second(1_770_000_000 + i as i64).expect("a time"),
                    model: ModelSummary {
                        architecture: "LlamaForCausalLM".into(),
                        parameters: 1_235_814_400,
                        dtype: "BF16".into(),
                        bytes: 2_471_645_608,
                    },
                    bytes: 2_481_000_000,
                };
                std::fs::create_dir(home.join("complete").join(model.name.as_str())).expect("a directory");
                catalogue::insert(change, &model)?;
            }
            Ok(())
        })
        .expect("the models can be listed");
}
