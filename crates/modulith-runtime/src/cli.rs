//! The command line: the application's own binary is the tool.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::app::App;
use crate::certs;
use crate::check::{lock, missing_certificates};
pub use crate::client::{Running, start_program_with, started};
use crate::control::Control;
use crate::expose;
use crate::host::{self, source};
use crate::log::{self, Format};
use crate::model::AppModel;
use crate::operate;
use crate::process;
use crate::topology::{Problems, Topology};

/// A configuration that cannot work: `EX_CONFIG` of sysexits.h. The supervisor does not start such a child again.
const EXIT_CONFIGURATION: u8 = 78;

/// What a command does. It runs on the main thread, so its future need not be [`Send`].
type RunFn = fn(Running, ArgMatches) -> Pin<Box<dyn Future<Output = anyhow::Result<ExitCode>>>>;

/// A command of the application's own that talks to the running application over HTTP.
///
/// It works against a running one (`--url`), or starts the topology itself on a data folder and stops it again.
pub struct Command {
    pub(crate) clap: clap::Command,
    pub(crate) run: RunFn,
}

impl Command {
    /// `clap` has the command's own arguments; `--topology`, `--data`, `--url` and `--json` are added.
    pub fn new(clap: clap::Command, run: RunFn) -> Self {
        Self { clap, run }
    }
}

/// The whole `main` of an application: reads the command line, does what it says, returns the exit code.
///
/// `NAME [run] [--topology FILE] [--service NAME] [--data DIR] [--listen ADDR] [--log text|json]`,
/// `NAME check`, `NAME graph`, `NAME openapi`, `NAME sagas list|show|resume|abort`, `NAME backup DIR`,
/// `NAME restore DIR [--service NAME]`, `NAME certs`, and the application's own commands.
pub fn main(app: App) -> ExitCode {
    let matches = match cli(&app).try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Printing to a closed pipe is the reader's wish.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match matches.subcommand() {
        Some(("check", matches)) => check(&app, matches),
        Some(("graph", matches)) => graph(&app, matches),
        Some(("openapi", matches)) => openapi(&app, matches),
        Some(("backup", matches)) => backup(&app, matches),
        Some(("restore", matches)) => restore(&app, matches),
        Some(("certs", matches)) => certs(&app, matches),
        Some(("run", matches)) => run(app, matches),
        Some(("sagas", matches)) => sagas(&app, matches),
        Some((name, own)) => match app.commands.iter().find(|command| command.clap.get_name() == name) {
            Some(command) => on_runtime(own_command(command.run, own.clone())),
            None => unreachable!("clap refuses commands that were not declared"),
        },
        None => run(app, &matches),
    }
}

fn cli(app: &App) -> clap::Command {
    let own = app.commands.iter().map(|command| {
        let command = command.clap.clone().args([topology_arg(), data_arg()]);
        command
            .arg(Arg::new("url").long("url").value_name("URL").help("use the application that runs there"))
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("print the result as JSON"))
    });
    clap::Command::new(app.name)
        .about("runs the application as one process, or as one process a service")
        .args_conflicts_with_subcommands(true)
        .args(run_args())
        .subcommand(clap::Command::new("run").about("run the application (the default)").args(run_args()))
        .subcommand(
            clap::Command::new("check")
                .about("check modules and topology; exit 1 with all problems")
                .arg(topology_arg())
                .arg(
                    lock_arg("against")
                        .help("compare the contracts with those of this file, and say which changes break whom"),
                )
                .arg(
                    lock_arg("write-lock")
                        .conflicts_with("against")
                        .help("write the contracts to this file: `contracts.lock` of the build that is released"),
                ),
        )
        .subcommand(
            clap::Command::new("graph")
                .about("print modules, contracts, needs, sagas and services")
                .arg(topology_arg())
                .arg(
                    Arg::new("format")
                        .long("format")
                        .value_parser(["mermaid", "json"])
                        .default_value("mermaid"),
                ),
        )
        .subcommand(
            clap::Command::new("openapi")
                .about("print what other programs may call, as an OpenAPI 3.1 document")
                .arg(topology_arg())
                .arg(
                    Arg::new("external")
                        .long("external")
                        .value_name("NAME")
                        .help("what this external service of the topology has to answer"),
                ),
        )
        .subcommand(
            clap::Command::new("backup")
                .about("copy every database into a folder, while the application runs or not")
                .args([folder_arg("a new folder, or an empty one"), topology_arg(), data_arg()]),
        )
        .subcommand(
            clap::Command::new("restore")
                .about("put the databases of a backup into the place of the present ones; the application must not run")
                .args([folder_arg("a folder that `backup` has written"), topology_arg(), data_arg()])
                .arg(
                    Arg::new("service")
                        .long("service")
                        .value_name("NAME")
                        .help("restore the database of this service alone"),
                ),
        )
        .subcommand(
            clap::Command::new("certs")
                .about("make a development authority, and a certificate for each service and the gateway")
                .args(certs_args()),
        )
        .subcommand(operate::command::clap([topology_arg(), data_arg()]))
        .subcommands(own)
}

fn topology_arg() -> Arg {
    Arg::new("topology")
        .long("topology")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("which service hosts which modules [default: everything in one process]")
}

fn lock_arg(name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("FILE").value_parser(value_parser!(PathBuf))
}

fn data_arg() -> Arg {
    Arg::new("data")
        .long("data")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .default_value("./data")
        .help("where databases and keys live")
}

fn folder_arg(help: &'static str) -> Arg {
    Arg::new("folder").value_name("DIR").required(true).value_parser(value_parser!(PathBuf)).help(help)
}

fn certs_args() -> [Arg; 5] {
    [
        topology_arg(),
        Arg::new("out")
            .long("out")
            .value_name("DIR")
            .value_parser(value_parser!(PathBuf))
            .help("where to put them [default: where the topology looks for them]"),
        Arg::new("days")
            .long("days")
            .value_name("N")
            .value_parser(value_parser!(u64).range(1..=certs::DAYS_MAX))
            .help(format!("how long they are valid [default: {}]", certs::DAYS_DEFAULT)),
        Arg::new("host")
            .long("host")
            .value_name("NAME")
            .action(ArgAction::Append)
            .help("a host name or address to put into the certificates beside the service's"),
        Arg::new("renew")
            .long("renew")
            .action(ArgAction::SetTrue)
            .help("make new certificates in the place of those that are there; keys and authority stay"),
    ]
}

fn run_args() -> [Arg; 5] {
    [
        topology_arg(),
        Arg::new("service")
            .long("service")
            .value_name("NAME")
            .help("run only this service of the topology, or `gateway`"),
        data_arg(),
        Arg::new("listen")
            .long("listen")
            .value_name("ADDR")
            .help("address of the front door [default: 127.0.0.1:8080, or the topology's]"),
        Arg::new("log").long("log").value_name("FORMAT").value_parser(["text", "json"]).default_value("text"),
    ]
}

fn topology(app: &App, matches: &ArgMatches) -> Result<Topology, ExitCode> {
    app.topology(matches.get_one::<PathBuf>("topology").map(PathBuf::as_path)).map_err(|problems| {
        eprintln!("{problems}");
        ExitCode::from(1)
    })
}

fn certs(app: &App, matches: &ArgMatches) -> ExitCode {
    let wanted = certs::Wanted {
        out: matches.get_one::<PathBuf>("out").cloned(),
        days: matches.get_one::<u64>("days").copied().unwrap_or(certs::DAYS_DEFAULT),
        hosts: matches.get_many::<String>("host").into_iter().flatten().cloned().collect(),
        renew: matches.get_flag("renew"),
    };
    match topology(app, matches) {
        Ok(topology) => done(certs::make(app.name, &topology, &wanted)),
        Err(code) => code,
    }
}

fn check(app: &App, matches: &ArgMatches) -> ExitCode {
    let topology = match topology(app, matches) {
        Ok(topology) => topology,
        Err(code) => return code,
    };
    let declared = app.declare(&topology).and_then(|(_, model)| {
        Problems::none_of(missing_certificates(&topology, app.name, topology.certified()))?;
        Ok(model)
    });
    let model = match declared {
        Ok(model) => model,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(1);
        }
    };
    print!("{}", crate::graph::table(&model, &topology));
    println!("{}: no problems", source(&topology));
    let lock = |name| matches.get_one::<PathBuf>(name);
    let checked = match (lock("against"), lock("write-lock")) {
        (Some(file), _) => check_against(&model, file),
        (None, Some(file)) => lock::write(&model, file).map_err(|problem| Problems(vec![problem])),
        (None, None) => Ok(()),
    };
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::from(1)
        }
    }
}

fn check_against(model: &AppModel, file: &Path) -> Result<(), Problems> {
    let changes = lock::against(model, file).map_err(|problem| Problems(vec![problem]))?;
    for line in &changes.safe {
        println!("safe: {line}");
    }
    Problems::none_of(changes.problems)?;
    println!("{}: nothing breaks", file.display());
    Ok(())
}

fn graph(app: &App, matches: &ArgMatches) -> ExitCode {
    let topology = match topology(app, matches) {
        Ok(topology) => topology,
        Err(code) => return code,
    };
    match app.declare(&topology) {
        Ok((_, model)) => {
            match matches.get_one::<String>("format").map(String::as_str) {
                Some("json") => println!("{:#}", crate::graph::json(&model, &topology)),
                _ => print!("{}", crate::graph::mermaid(&model, &topology)),
            }
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::from(1)
        }
    }
}

fn openapi(app: &App, matches: &ArgMatches) -> ExitCode {
    let topology = match topology(app, matches) {
        Ok(topology) => topology,
        Err(code) => return code,
    };
    let model = match app.declare(&topology) {
        Ok((_, model)) => model,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(1);
        }
    };
    match expose::printed(&model, &topology, matches.get_one::<String>("external").map(String::as_str)) {
        Ok(document) => {
            println!("{document:#}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{}: {why}", source(&topology));
            ExitCode::from(1)
        }
    }
}

fn backup(app: &App, matches: &ArgMatches) -> ExitCode {
    match topology(app, matches) {
        Ok(topology) => {
            done(crate::backup::backup(app, &topology, path(matches, "data"), path(matches, "folder")))
        }
        Err(code) => code,
    }
}

fn sagas(app: &App, matches: &ArgMatches) -> ExitCode {
    let Some((_, own)) = matches.subcommand() else {
        unreachable!("clap asks for a subcommand");
    };
    match topology(app, own) {
        Ok(topology) => {
            on_runtime(operate::command::run(format!("http://{}", topology.gateway.listen), matches.clone()))
        }
        Err(code) => code,
    }
}

fn restore(app: &App, matches: &ArgMatches) -> ExitCode {
    let service = matches.get_one::<String>("service").map(String::as_str);
    match topology(app, matches) {
        Ok(topology) => {
            let (data, folder) = (path(matches, "data"), path(matches, "folder"));
            done(crate::backup::restore(app, &topology, data, folder, service))
        }
        Err(code) => code,
    }
}

/// An argument that is required or has a default.
fn path<'a>(matches: &'a ArgMatches, name: &str) -> &'a Path {
    matches.get_one::<PathBuf>(name).expect("clap refuses a command line without it")
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(app: App, matches: &ArgMatches) -> ExitCode {
    let topology = match topology(&app, matches) {
        Ok(topology) => topology,
        // Whoever started it has to know that starting it again is in vain.
        Err(_) => return ExitCode::from(EXIT_CONFIGURATION),
    };
    let options = RunOptions {
        topology_file: matches.get_one::<PathBuf>("topology").cloned(),
        service: matches.get_one::<String>("service").cloned(),
        data: matches.get_one::<PathBuf>("data").cloned().unwrap_or_else(|| "./data".into()),
        listen: matches.get_one::<String>("listen").cloned(),
        log: match matches.get_one::<String>("log").map(String::as_str) {
            Some("json") => Format::Json,
            _ => Format::Text,
        },
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let is_supervised = Control::from_environment().is_controlled();
    // Whoever sets tokio's own variable means it.
    let workers = match std::env::var_os("TOKIO_WORKER_THREADS") {
        Some(_) => None,
        None => topology.workers(options.service.as_deref(), is_supervised, cores),
    };
    on_workers(workers, async move { Ok(start(&app, &topology, options).await) })
}

struct RunOptions {
    topology_file: Option<PathBuf>,
    service: Option<String>,
    data: PathBuf,
    listen: Option<String>,
    log: Format,
}

async fn start(app: &App, topology: &Topology, options: RunOptions) -> ExitCode {
    let control = Control::from_environment();
    let name = options.service.as_deref().unwrap_or(app.name);
    log::start(options.log, name, control.is_controlled());
    let listen = options.listen.clone().unwrap_or_else(|| topology.gateway.listen.to_string());
    let data = &options.data;
    let result = match options.service.as_deref() {
        Some("gateway") if topology.service("gateway").is_none() => {
            process::gateway(app, topology, data, &listen, control).await
        }
        Some(service) if topology.is_monolith() && topology.service(service).is_some() => {
            process::monolith(app, topology, data, &listen, control).await
        }
        Some(service) => process::service(app, topology, service, data, control).await,
        None if topology.is_monolith() => process::monolith(app, topology, data, &listen, control).await,
        None => return supervise(app, topology, &options, &listen, control).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::from(if error.is_configuration() { EXIT_CONFIGURATION } else { 1 })
        }
    }
}

/// `--topology FILE` alone: a process a service and the gateway, as children of this one.
async fn supervise(
    app: &App,
    topology: &Topology,
    options: &RunOptions,
    listen: &str,
    control: Control,
) -> ExitCode {
    let checked = app.declare(topology).and_then(|(_, model)| {
        Problems::none_of(missing_certificates(topology, app.name, topology.certified()))?;
        Ok(model)
    });
    let model = match checked {
        Ok(model) => model,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    // Said once, here, instead of by each child.
    if let Err(error) = host::remember(&options.data, topology, &model) {
        eprintln!("{}: {error}", app.name);
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    if !control.is_controlled() {
        eprint!("{}", crate::graph::table(&model, topology));
    }
    match crate::supervisor::run(
        topology,
        options.topology_file.as_deref(),
        &options.data,
        listen,
        options.log.name(),
        control,
    )
    .await
    {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}: {error}", app.name);
            ExitCode::from(1)
        }
    }
}

async fn own_command(run: RunFn, matches: ArgMatches) -> anyhow::Result<ExitCode> {
    let url = matches.get_one::<String>("url").cloned();
    let topology = matches.get_one::<PathBuf>("topology").cloned();
    let data = matches.get_one::<PathBuf>("data").cloned().unwrap_or_else(|| "./data".into());
    let running = match url {
        Some(url) => Running::at(url, &data)?,
        None => started(topology.as_deref(), &data).await?,
    };
    run(running, matches).await
}

fn on_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    on_workers(None, work)
}

fn on_workers(workers: Option<usize>, work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(work).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::from(1)
    });
    // What still blocks (a heavy query) is not worth waiting for.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}
