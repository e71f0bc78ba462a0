//! `tributary check`: all that is wrong with a configuration, for people or for scripts.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::{BAD_CONFIGURATION, plan};
use crate::config::{Occasion, Report, load};

/// What `--json` prints.
#[derive(Serialize)]
struct Found<'r> {
    #[serde(flatten)]
    report: &'r Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<serde_json::Value>,
}

pub(super) fn check(file: &Path, json: bool, with_plan: bool) -> ExitCode {
    let (config, report) = load(file, Occasion::Check);
    if json {
        let plan = config.as_ref().filter(|_| with_plan).map(plan::json);
        match serde_json::to_string_pretty(&Found { report: &report, plan }) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("error: the report cannot be written: {error}"),
        }
    } else {
        report.tell();
    }
    let Some(config) = config else {
        if !json {
            let count = report.errors.len() + report.unlisted;
            eprintln!("{}: {count} error{}", file.display(), if count == 1 { "" } else { "s" });
        }
        return ExitCode::from(BAD_CONFIGURATION);
    };
    if !json {
        print!("{}", plan::summary(&config));
    }
    if with_plan && !json {
        print!("{}", plan::requests(&config));
    }
    ExitCode::SUCCESS
}
