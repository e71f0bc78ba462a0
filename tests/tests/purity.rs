//! Holds the house's plan: what the pure crates may depend on, and which way the arrows between the crates point.
//!
//! Core, proto and protocols (without its feature `io`) know no clock, socket, file, thread or chance they were not
//! handed (ARCHITECTURE.md, "Purity"). `#![no_std]` holds most of that; this allow-list holds the rest, because a
//! `no_std` crate may still depend on one that opens sockets. Procedural macros run at build time only and are left out.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pure crate: package, folder, and every library that may be linked into it, with those that these need.
struct Pure {
    package: &'static str,
    folder: &'static str,
    may_link: &'static [&'static str],
}

const PURE: [Pure; 3] = [
    Pure {
        package: "tributary-protocols",
        folder: "protocols",
        may_link: &[
            "serde",
            "serde_core",
            "serde_json",
            "itoa",
            "memchr",
            "zmij",
            "thiserror",
            // frames: their CRC and their buffers
            "crc",
            "crc-catalog",
            "heapless",
            "hash32",
            "byteorder",
            "stable_deref_trait",
        ],
    },
    Pure {
        package: "tributary-proto",
        folder: "proto",
        may_link: &["bytes", "crc", "crc-catalog", "prost", "thiserror", "zstd-safe", "zstd-sys"],
    },
    Pure {
        package: "tributary-core",
        folder: "agent/core",
        may_link: &[
            "tributary-protocols",
            "tributary-proto",
            // protocols' and proto's own
            "serde",
            "serde_core",
            "serde_json",
            "itoa",
            "memchr",
            "zmij",
            "thiserror",
            "bytes",
            "crc",
            "crc-catalog",
            "prost",
            "zstd-safe",
            "zstd-sys",
            // rings, ranges of seqs, square roots, seeded chance
            "heapless",
            "hash32",
            "byteorder",
            "stable_deref_trait",
            "libm",
            "fastrand",
            "rangemap",
            // sha2 and what it is made of
            "sha2",
            "digest",
            "block-buffer",
            "crypto-common",
            "hybrid-array",
            "typenum",
            "cpufeatures",
            "cfg-if",
        ],
    },
];

/// The arrows: who may know whom. Tests and the demo stand above everything and may know all.
const ARROWS: [(&str, &str, &[&str]); 5] = [
    ("protocols", "tributary-protocols", &[]),
    ("proto", "tributary-proto", &[]),
    ("agent/core", "tributary-core", &["tributary-protocols", "tributary-proto"]),
    ("agent/daemon", "tributary", &["tributary-core", "tributary-protocols", "tributary-proto"]),
    ("receiver", "tributary-receiver", &["tributary-proto"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Lines of `cargo tree` for one pure crate built alone, each one package (or feature) a line.
fn tree(package: &str, edges: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--no-default-features", "--prefix", "none", "--format", "{p}"])
        .args(["-e", edges, "-p", package])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree -p {package}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn pure_crates_link_only_what_is_allowed() {
    for pure in &PURE {
        let linked: BTreeSet<String> = tree(pure.package, "normal,no-proc-macro")
            .iter()
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .filter(|name| !name.is_empty() && name != pure.package)
            .collect();
        for name in &linked {
            assert!(
                pure.may_link.contains(&name.as_str()),
                "{} links `{name}`, which is not on its allow-list. Do without it, put it behind the feature `io` or in \
                 the daemon; if it truly needs no clock, socket, file, thread or chance, add it to tests/tests/purity.rs \
                 and to \"Purity\" in ARCHITECTURE.md",
                pure.package
            );
        }
    }
}

/// `std` of a library that offers it as a feature would let the outside in by the back door.
#[test]
fn pure_crates_switch_no_std_feature_on() {
    for pure in &PURE {
        for line in tree(pure.package, "features,normal,no-proc-macro") {
            let Some((name, feature)) = line.split_once(" feature ") else { continue };
            assert!(
                !feature.trim_end_matches(" (*)").contains("\"std\""),
                "{} builds `{name}` with its feature std. Set `default-features = false` on it in the root Cargo.toml, \
                 and switch std on only in the crates that may touch the world",
                pure.package
            );
        }
    }
}

#[test]
fn pure_crates_are_no_std() {
    for pure in &PURE {
        let lib = root().join(pure.folder).join("src/lib.rs");
        let text = std::fs::read_to_string(&lib).unwrap();
        assert!(
            text.lines().any(|line| line == "#![no_std]"),
            "{}/src/lib.rs is not `#![no_std]` any more: put the line back, and what needs std into the daemon or behind \
             the feature `io`",
            pure.folder
        );
    }
}

#[test]
fn no_arrow_runs_up() {
    let members: BTreeSet<&str> =
        ARROWS.iter().map(|(_, package, _)| *package).chain(["tributary-tests", "tributary-demo"]).collect();
    for (folder, package, may_know) in ARROWS {
        let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(
            manifest["package"]["name"].as_str(),
            Some(package),
            "{folder}/Cargo.toml: the plan knows {package}"
        );
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for (name, value) in dependencies {
                let name = value.get("package").and_then(toml::Value::as_str).unwrap_or(name);
                assert!(
                    !members.contains(name) || may_know.contains(&name),
                    "{folder}/Cargo.toml: {package} may not know {name} ([{section}]). Arrows run protocols, proto ← core \
                     ← daemon and proto ← receiver; move what both need down to the ground floor, or the test that needs \
                     both into tests/",
                );
            }
        }
    }
}

/// The allow-list itself stays honest: what no crate links any more is taken off.
#[test]
fn allow_lists_hold_nothing_idle() {
    let mut idle: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pure in &PURE {
        let lines = tree(pure.package, "normal,no-proc-macro");
        let linked: BTreeSet<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
        for name in pure.may_link {
            if !linked.contains(name) {
                idle.entry(pure.package).or_default().push(name);
            }
        }
    }
    assert!(idle.is_empty(), "take these off the allow-lists of tests/tests/purity.rs, nothing links them: {idle:?}");
}
