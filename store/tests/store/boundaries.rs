//! No module depends on another module's implementation.

use cargo_metadata::{Metadata, MetadataCommand};

/// `store-orders` may depend on `store-products-contract`, never on `store-products`.
fn violations(metadata: &Metadata) -> Vec<String> {
    let modules: Vec<&str> = (metadata.packages.iter())
        .filter(|package| {
            package.manifest_path.as_str().contains("/modules/") && !package.name.ends_with("-contract")
        })
        .map(|package| package.name.as_str())
        .collect();
    let within =
        metadata.packages.iter().filter(|package| package.manifest_path.as_str().contains("/modules/"));
    within
        .flat_map(|package| {
            let forbidden =
                package.dependencies.iter().filter(|dependency| modules.contains(&dependency.name.as_str()));
            forbidden.map(|dependency| {
                format!(
                    "{} depends on the implementation of {}; depend on {0}-contract",
                    package.name, dependency.name
                )
            })
        })
        .collect()
}

fn metadata(manifest: &str) -> Metadata {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest);
    MetadataCommand::new().manifest_path(path).no_deps().exec().expect("cargo describes the workspace")
}

#[test]
fn modules_know_contracts_only() {
    let metadata = metadata("../Cargo.toml");
    let modules =
        metadata.packages.iter().filter(|package| package.manifest_path.as_str().contains("/modules/"));
    assert!(modules.count() >= 10, "five modules and their contracts are looked at");
    assert_eq!(violations(&metadata), Vec::<String>::new());
}

#[test]
fn a_violation_is_found() {
    let found = violations(&metadata("tests/store/violation/Cargo.toml"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("thief depends on the implementation of victim"), "{found:?}");
}
