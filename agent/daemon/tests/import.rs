//! `tributary import` over folders of cases: a foreign map and its arguments, the profile that comes of it, and all that is
//! said beside it. What came once goes through both of our views and comes out the same. `UPDATE_GOLDEN=1` writes what is
//! expected anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

fn import(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary"));
    command.arg("import").args(arguments).current_dir(folder).output().expect("the binary was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn compare(file: &Path, made: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(file, made).expect("the case can be written");
    }
    assert_eq!(made, fs::read_to_string(file).expect("what is expected"), "{}", file.display());
}

#[test]
fn maps_become_the_profiles_that_they_are_and_what_is_no_map_is_refused() {
    let (mut good, mut refused) = (0, 0);
    for folder in fs::read_dir(cases()).expect("cases").map(|folder| folder.expect("a case").path()) {
        let arguments = fs::read_to_string(folder.join("arguments")).expect("arguments");
        let output = import(&folder, &arguments.lines().collect::<Vec<_>>());
        compare(&folder.join("expected.stderr"), &text(&output.stderr));
        if folder.file_name().is_some_and(|name| name.to_string_lossy().contains("-refused-")) {
            assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{}", folder.display());
            refused += 1;
            continue;
        }
        assert_eq!(output.status.code(), Some(0), "{}", folder.display());
        compare(&folder.join("expected.toml"), &text(&output.stdout));
        good += 1;
    }
    assert!(good >= 3 && refused >= 12, "{good} good, {refused} refused");
}

#[test]
fn what_was_imported_is_the_same_after_both_views() {
    let mut count = 0;
    for folder in fs::read_dir(cases()).expect("cases").map(|folder| folder.expect("a case").path()) {
        let Ok(profile) = fs::read_to_string(folder.join("expected.toml")) else { continue };
        let temporary = tempfile::tempdir().expect("a folder");
        let at = temporary.path();
        fs::write(at.join("a.toml"), &profile).expect("a file");
        let through = |arguments: &[&str], file: &str| {
            let output = import(at, &[arguments, &["--output", file]].concat());
            assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
            fs::read_to_string(at.join(file)).expect("the output")
        };
        let table = through(&["profile", "a.toml"], "a.csv");
        assert_eq!(through(&["table", "a.csv"], "b.toml"), profile, "{table}");
        assert_eq!(through(&["profile", "b.toml"], "b.csv"), table);
        // Without its head, the table is any list of registers, whose columns have our names.
        let (head, list): (Vec<&str>, Vec<&str>) = table.lines().partition(|line| line.starts_with('#'));
        fs::write(at.join("list.csv"), list.join("\n")).expect("a file");
        let said = |key: &str| {
            let found = head.iter().find_map(|line| line.strip_prefix(&format!("# {key} = ")));
            found.unwrap_or("\"\"").trim_matches('"').to_owned()
        };
        let (name, addressing, order) = (said("profile"), said("addressing"), said("order"));
        let arguments = ["csv", "list.csv", "--name", &name, "--addressing", &addressing, "--order", &order];
        let points = |profile: &str| profile.split_once("\n[[point]]").map(|(_, points)| points.to_owned());
        assert_eq!(points(&through(&arguments, "c.toml")), points(&profile), "{table}");
        count += 1;
    }
    assert!(count >= 3, "{count}");
}
