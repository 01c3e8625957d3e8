//! Any text as a Deployment Template File, Go template or Modelfile: faults with their place, or what it says,
//! and then it is rendered without a fault of Tenon's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenon_deploy::Error;
use tenon_deploy::template::DeploymentTemplate;

fuzz_target!(|text: &str| match DeploymentTemplate::parse("file", text) {
    Ok(template) => {
        let settings = template.settings();
        assert!(settings.template.is_some() || settings.renderer.is_some(), "it says how to put conversations");
    }
    Err(Error::Template { faults, .. }) => assert!(faults.iter().count() > 0),
    Err(other) => panic!("{other}"),
});
