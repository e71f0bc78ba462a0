//! The README's first command, shorter: its exit code is 1 if the law or the database disagrees.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn live_the_demo_ends_with_its_proof() {
    let demo = Command::new(env!("CARGO_BIN_EXE_tributary-demo")).args(["--seconds", "20", "--json"]).output().unwrap();
    let (told, said) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{told}\n{said}");
    assert!(told.contains("\"disagreements\":[]"), "{told}\n{said}");
    println!("{told}");
}
