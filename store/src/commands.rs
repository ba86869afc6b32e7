//! `store import` and `store audit`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, value_parser};
use modulith::cli::{Command, Running};

use crate::client::Target;

pub(crate) fn import() -> Command {
    let file = Arg::new("file").value_name("FILE").required(true).value_parser(value_parser!(PathBuf));
    let clap = clap::Command::new("import")
        .about("import an order book in the format of UCI's Online Retail")
        .arg(file);
    Command::new(clap, |running, matches| {
        Box::pin(async move {
            let file = matches.get_one::<PathBuf>("file").map_or(Path::new(""), PathBuf::as_path);
            let report = crate::import::import(&target(&running)?, file, true).await;
            running.stop().await?;
            let report = report?;
            print(&report, matches.get_flag("json"))?;
            Ok(ExitCode::SUCCESS)
        })
    })
}

pub(crate) fn audit() -> Command {
    let provider = Arg::new("provider").long("provider").value_name("URL");
    let clap = clap::Command::new("audit")
        .about("check money, goods and sagas against orders; exit 1 with every mismatch")
        .arg(provider.help("compare the books of the stand-in provider there too"));
    Command::new(clap, |running, matches| {
        Box::pin(async move {
            let provider = matches.get_one::<String>("provider");
            let provider = provider.map(|url| Target::new(url, "")).transpose()?;
            let report = crate::audit::audit(&target(&running)?, provider.as_ref()).await;
            running.stop().await?;
            let report = report?;
            print(&report, matches.get_flag("json"))?;
            Ok(if report.mismatches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
    })
}

fn target(running: &Running) -> anyhow::Result<Target> {
    Target::new(running.url(), running.admin_token())
}

/// As one line of JSON, or for a person: one field a line.
fn print(report: &impl serde::Serialize, json: bool) -> anyhow::Result<()> {
    let report = serde_json::to_value(report)?;
    match report.as_object() {
        Some(fields) if !json => fields.iter().for_each(|(name, value)| println!("{name:>16}  {value}")),
        _ => println!("{report}"),
    }
    Ok(())
}
