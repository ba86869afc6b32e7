use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;

use super::*;

const SPLIT: &str = r#"
[gateway]
listen = "127.0.0.1:9090"
drain_s = 3

[service.products]
modules = ["products"]
database = "./catalogue//products.db"

[service.orders]
modules = [
    "orders",
    "cart",
]
listen = "127.0.0.1:7002"

[module.payments]
provider = "embedded"
attempts = 3
"#;

fn read(text: &str) -> Topology {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("split.toml");
    std::fs::write(&file, text).unwrap();
    Topology::load(&file).unwrap()
}

/// The problems without their file's folder.
fn problems(text: &str) -> Vec<String> {
    let problems = read(text).problems;
    problems
        .into_iter()
        .map(|problem| Problem { file: Some("t.toml".into()), ..problem }.to_string())
        .collect()
}

#[test]
fn telemetry_has_a_ratio_and_a_place() {
    assert_eq!(read("").telemetry.sampling, Sampling { ratio: 0.01, trust_parent: false });
    let text = "[telemetry]\nsample_ratio = 1\ntrust_parent = true\nlisten = \"127.0.0.1:9464\"\n";
    let telemetry = read(text).telemetry;
    assert_eq!(telemetry.sampling, Sampling { ratio: 1.0, trust_parent: true });
    assert_eq!(telemetry.listen.expect("named").to_string(), "127.0.0.1:9464");
    assert_eq!(
        problems("[telemetry]\nsample_ratio = 1.5\ntrust_parent = 1\nsampling = 1\n"),
        [
            "t.toml:2: telemetry.sample_ratio: 1.5 is not from 0 to 1; write `sample_ratio = 0.01`",
            "t.toml:3: telemetry.trust_parent: a boolean is expected, not an integer; write `trust_parent = false`",
            "t.toml:4: telemetry.sampling: unknown key; remove it; \
             known here: `sample_ratio`, `trust_parent`, `listen`",
        ]
    );
}

#[test]
fn a_file_is_read_with_its_defaults_and_lines() {
    let topology = read(SPLIT);
    assert!(topology.problems.is_empty(), "{:?}", topology.problems);
    assert_eq!(topology.gateway.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(topology.gateway.drain(), Duration::from_secs(3));
    assert!(!topology.is_monolith());
    let orders = topology.service_of("cart").unwrap();
    assert_eq!((orders.name.as_str(), orders.replicas), ("orders", 1));
    assert_eq!(topology.line("service.orders.modules[1]"), Some(13));
    assert_eq!(topology.line("service.orders.database"), Some(10), "an absent key is at its section");
    let data = tempfile::tempdir().unwrap();
    let database = |service| topology.database_path(topology.service(service).unwrap(), data.path());
    assert_eq!(database("products"), data.path().join("catalogue/products.db"));
    assert_eq!(database("orders"), data.path().join("orders.db"));
}

#[test]
fn the_processes_of_one_supervisor_share_its_cores() {
    let split = read("[service.a]\nmodules = [\"x\"]\nworkers = 3\n[service.b]\nmodules = [\"y\"]\n");
    for (cores, share) in [(1, 1), (2, 1), (3, 1), (4, 2), (8, 3)] {
        assert_eq!(split.workers(Some("b"), true, cores), Some(share), "{cores} cores, three processes");
        assert_eq!(split.workers(Some("gateway"), true, cores), Some(share));
        assert_eq!(split.workers(Some("a"), true, cores), Some(3), "as written");
        assert_eq!(split.workers(None, false, cores), Some(1), "the supervisor waits");
        assert_eq!(split.workers(Some("b"), false, cores), None, "somebody else starts it");
    }
    let whole = Topology::built_in("store", &["x", "y"]);
    assert_eq!(whole.workers(None, false, 4), None);
    assert_eq!(whole.workers(Some("store"), true, 4), None);
    assert_eq!(
        read("[gateway]\nworkers = 2\n[service.a]\n[service.b]").workers(Some("gateway"), true, 9),
        Some(2)
    );
}

#[test]
fn the_built_in_topology_is_one_service() {
    let topology = Topology::built_in("store", &["users", "cart"]);
    assert!(topology.is_monolith());
    assert_eq!(topology.service_of("cart").unwrap().database_file(), Path::new("store.db"));
    assert_eq!(topology.gateway.listen.to_string(), LISTEN_DEFAULT);
}

#[test]
fn all_mistakes_of_a_file_are_listed_with_line_and_mend() {
    let text = r#"
moduls = 1
[gateway]
lisen = "127.0.0.1:80"
drain_s = 0
[service]
loose = true
[service.a]
modules = ["x", 7]
listen = "localhost"
database = 3
replicas = -1
workers = 0
colour = "red"
[service.b]
modules = "x"
replicas = 1.5
"#;
    assert_eq!(
        problems(text),
        [
            "t.toml:2: moduls: unknown key; did you mean `module`?",
            "t.toml:4: gateway.lisen: unknown key; did you mean `listen`?",
            "t.toml:5: gateway.drain_s: 0 s is not from 1 to 600; write `drain_s = 10`",
            "t.toml:7: service.loose: a section is expected, not a boolean; \
             write `[service.NAME]` above `loose`, with the name of a service",
            "t.toml:9: service.a.modules: integer stands where a module name belongs; write `modules = [\"NAME\"]`",
            "t.toml:10: service.a.listen: address \"localhost\": no port; write `listen = \"unix:run/a.sock\"`",
            "t.toml:11: service.a.database: a string is expected, not an integer; write `database = \"a.db\"`",
            "t.toml:12: service.a.replicas: the number is negative; write `replicas = 1`",
            "t.toml:13: service.a.workers: the number is not from 1 to 512; write `workers = 2`",
            "t.toml:14: service.a.colour: unknown key; \
             remove it; known here: `modules`, `listen`, `addresses`, `database`, `replicas`, `workers`",
            "t.toml:16: service.b.modules: a list of module names is expected, not a string; \
             write `modules = [\"NAME\"]`",
            "t.toml:17: service.b.replicas: a whole number is expected, not a float; write `replicas = 1`",
        ]
    );
}

#[test]
fn a_file_that_is_absent_or_no_toml_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("split.toml");
    let absent = Topology::load(&file).unwrap_err().to_string();
    assert!(absent.contains("split.toml: No such file") && absent.ends_with("1 problem"), "{absent}");
    std::fs::write(&file, "[gateway]\nlisten = \n").unwrap();
    let broken = Topology::load(&file).unwrap_err().to_string();
    assert!(broken.contains("split.toml:2: "), "{broken}");
}

#[test]
fn the_environment_overrides_a_modules_section() {
    let topology = read(SPLIT);
    let environment = [
        ("MODULITH_PAYMENTS_PROVIDER", "7"),
        ("MODULITH_PAYMENTS_ATTEMPTS", "5"),
        ("MODULITH_PAYMENTS_API_KEY", "sk_test_4242 # secret"),
        ("MODULITH_PAYMENTS_LIVE", "true"),
        ("MODULITH_PAYMENTS_QUOTED", "\"12\""),
        ("MODULITH_PAYMENTS_NICKNAME", "inf"),
        ("MODULITH_PAYMENTS_", "no key"),
        ("MODULITH_PAYMENTSX_KEY", "another module"),
        ("PATH", "/bin"),
    ];
    let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let config = topology.module_config_from("payments", environment.clone());
    let expected: toml::Table = toml::from_str(
        "provider = '7'\nattempts = 5\napi_key = 'sk_test_4242 # secret'\nlive = true\nquoted = '12'\nnickname = 'inf'",
    )
    .unwrap();
    assert_eq!(config, expected);
    assert_eq!(topology.module_config_from("cart", environment), toml::Table::new());
}

#[test]
fn sockets_are_in_the_data_folder_while_their_path_is_short_enough() {
    let topology = read(SPLIT);
    let products = topology.service("products").unwrap();
    let short = tempfile::tempdir().unwrap();
    let place = topology.listen_address(products, short.path());
    assert_eq!(place, Address::Unix(short.path().canonicalize().unwrap().join("run/products.sock")));
    assert_eq!(
        topology.listen_address(topology.service("orders").unwrap(), short.path()).to_string(),
        "127.0.0.1:7002"
    );

    let deep = short.path().join("d".repeat(90));
    std::fs::create_dir(&deep).unwrap();
    let Address::Unix(path) = topology.listen_address(products, &deep) else { panic!("a socket") };
    assert!(path.as_os_str().len() <= UNIX_PATH_BYTES_MAX, "{}", path.display());
    assert_eq!(path, {
        let through_dots = deep.join("..").join(deep.file_name().unwrap());
        let Address::Unix(path) = topology.listen_address(products, &through_dots) else {
            panic!("a socket")
        };
        path
    });
    topology.make_socket_folders(&deep).unwrap();
    let folder = path.parent().unwrap();
    assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = topology.make_socket_folders(&deep).unwrap_err().to_string();
    assert!(refused.contains("not a folder of this user alone"), "{refused}");
    std::fs::remove_dir(folder).unwrap();
}

#[test]
fn what_other_hosts_can_reach_is_over_tls_unless_it_is_said_in_so_many_words() {
    let over_tls = |trust: &str, listen: &str| {
        let text =
            format!("{trust}\n[service.a]\nmodules = []\nlisten = \"{listen}\"\n[service.b]\nmodules = []\n");
        let topology = read(&text);
        assert_eq!(topology.problems, [], "{text}");
        let services: Vec<bool> =
            topology.services.iter().map(|service| topology.is_over_tls(service)).collect();
        assert!(!services[1], "a Unix socket is never");
        assert_eq!(topology.needs_certificates(), services[0]);
        services[0]
    };
    let beyond = ["0.0.0.0:1", "[::]:1", "10.0.0.5:1", "products.internal:1", "localhost.example.org:1"];
    let within = ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "localhost:1", "LOCALHOST:1", "unix:a.sock"];
    for listen in beyond {
        assert!(over_tls("", listen), "{listen}");
        let plaintext = format!("[trust]\nplaintext = \"{PLAINTEXT}\"");
        assert!(!over_tls(&plaintext, listen), "{listen}");
    }
    for listen in within {
        assert!(!over_tls("", listen), "{listen}");
        assert_eq!(over_tls("[trust]\ntls = \"always\"", listen), !listen.starts_with("unix:"), "{listen}");
    }
    let one = read("[trust]\ntls = \"always\"\n[service.a]\nmodules = []\nlisten = \"0.0.0.0:1\"\n");
    assert!(!one.needs_certificates(), "one process talks to nobody");
}

#[test]
fn trust_is_read_with_its_places_and_its_mistakes() {
    let text =
        "[trust]\ncertificate = \"/etc/shop/{service}/tls.pem\"\nkey = \"k/{service}\"\nunix_uids = [7, 8]\n";
    let topology = read(text);
    assert_eq!(topology.problems, []);
    assert_eq!(topology.trust.unix_uids, [7, 8]);
    let files = topology.trust_files("orders");
    let folder = topology.file.as_ref().and_then(|file| file.parent()).unwrap();
    assert_eq!(files.authority, folder.join("certs/authority.pem"));
    assert_eq!(files.certificate, Path::new("/etc/shop/orders/tls.pem"));
    assert_eq!(files.key, folder.join("k/orders"));

    let text = "[trust]\nauthority = 3\ntls = \"never\"\nplaintext = \"yes\"\nunix_uids = [-1]\ncertificat = \"x\"\n\
         [service.a]\nmodules = []\n";
    assert_eq!(
        problems(text),
        [
            "t.toml:2: trust.authority: a path is expected; write `authority = \"certs/authority.pem\"`",
            "t.toml:3: trust.tls: addresses beyond loopback are over TLS anyway; `always` is all that can be asked for; \
             write `tls = \"always\"`, or remove it",
            "t.toml:4: trust.plaintext: calls between hosts are encrypted unless this says what it means when they are \
             not; write `plaintext = \"anyone on this network can read and change calls\"`, or remove it",
            "t.toml:5: trust.unix_uids: a list of user ids is expected; write `unix_uids = [1000]`",
            "t.toml:6: trust.certificat: unknown key; did you mean `certificate`?",
        ]
    );
    let both = format!("[trust]\ntls = \"always\"\nplaintext = \"{PLAINTEXT}\"\n");
    assert_eq!(
        problems(&both),
        ["t.toml:3: trust.plaintext: it cannot be together with `tls`; remove one of the two"]
    );
}
