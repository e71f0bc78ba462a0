//! What the documents tell people to type is typed, and does what they say.

use std::path::Path;

use tributary_tests::walk::walk;

#[tokio::test]
async fn from_an_unknown_device_to_live_values() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocols/src/modbus/README.md");
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(readme).expect("the README is there");
    let commands = walk(&text, folder.path()).await.unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(commands >= 10, "the walk-through has only {commands} commands");
}
