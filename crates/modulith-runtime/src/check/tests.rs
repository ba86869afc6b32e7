use modulith_core::{Kind, PlanModel, UndoModel};

use super::check;
use super::fixture::{Forgetful, contract, module, payments, products, shop};
use crate::model::AppModel;
use crate::topology::{Problem, Problems, Topology};

const SPLIT: &str = r#"
[service.products]
modules = ["products"]
[service.payments]
modules = ["payments"]
[service.orders]
modules = ["orders"]
"#;

fn topology(text: &str) -> Topology {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.toml");
    std::fs::write(&file, text).unwrap();
    let mut topology = Topology::load(&file).unwrap_or_else(|problems| panic!("{problems}"));
    topology.file = Some("t.toml".into());
    topology.problems.iter_mut().for_each(|problem| problem.file = Some("t.toml".into()));
    topology
}

fn found(model: &AppModel, text: &str) -> Vec<String> {
    check(model, &topology(text)).iter().map(Problem::to_string).collect()
}

/// What is wrong with a spoiled application in a sound topology.
fn spoiled(spoil: impl FnOnce(&mut AppModel)) -> Vec<String> {
    let mut model = shop();
    spoil(&mut model);
    let modules: Vec<&str> = model.modules.iter().map(|module| module.name).collect();
    let mut once = modules.clone();
    once.dedup();
    check(&model, &Topology::built_in("shop", &once)).iter().map(Problem::to_string).collect()
}

#[test]
fn a_sound_application_has_no_problem_in_either_topology() {
    assert_eq!(found(&shop(), SPLIT), Vec::<String>::new());
    assert_eq!(spoiled(|_| {}), Vec::<String>::new());
}

#[test]
fn metrics_are_shown_without_a_token_on_loopback_only() {
    for (listen, is_refused) in [
        ("127.0.0.1:9464", false),
        ("localhost:9464", false),
        ("[::1]:9464", false),
        ("0.0.0.0:9464", true),
        ("192.0.2.1:9464", true),
        ("unix:run/metrics.sock", true),
    ] {
        let text = format!("{SPLIT}\n[telemetry]\nlisten = \"{listen}\"\n");
        let problems = found(&shop(), &text);
        assert_eq!(problems.iter().any(|it| it.contains("telemetry.listen")), is_refused, "{problems:?}");
        assert_eq!(problems.len(), usize::from(is_refused), "{problems:?}");
    }
}

#[test]
fn everything_wrong_with_a_topology_is_listed_at_once_by_line() {
    let text = r#"
[gateway]
listen = "127.0.0.1:7001"
[service.gateway]
modules = ["prodcuts", "orders"]
listen = "0.0.0.0:7001"
replicas = 2
[service.B]
modules = ["orders"]
listen = "localhost:7001"
database = "x/../gateway.db"
replicas = 0
[service.c]
modules = []
listen = "127.0.0.1:0"
speed = 9
[module.cart]
"#;
    assert_eq!(
        found(&shop(), text),
        [
            "t.toml:4: service.gateway: `gateway` is the name of the front door's own process; \
             give the service another name",
            "t.toml:4: service: module `products` is in no service; \
             add \"products\" to the `modules` of a service, or `[service.products]`",
            "t.toml:4: service: module `payments` is in no service; \
             add \"payments\" to the `modules` of a service, or `[service.payments]`",
            "t.toml:5: service.gateway.modules: module `prodcuts` does not exist; did you mean `products`?",
            "t.toml:6: service.gateway.listen: service `gateway` and the gateway both listen at 0.0.0.0:7001; \
             write `listen = \"unix:run/gateway.sock\"`",
            "t.toml:7: service.gateway.replicas: 2 replicas on SQLite: a file's writes belong to one process, the \
             others would be refused; write `replicas = 1`",
            "t.toml:8: service.B: `B` cannot name a service, since it also names files and hosts; \
             write lower-case letters, digits and dashes, a letter first",
            "t.toml:9: service.B.modules: module `orders` is in service `gateway` already; remove it here or there",
            "t.toml:10: service.B.listen: services `gateway` and `B` both listen at localhost:7001; \
             give each service an address of its own",
            "t.toml:10: service.B.listen: service `B` and the gateway both listen at localhost:7001; \
             write `listen = \"unix:run/B.sock\"`",
            "t.toml:11: service.B.database: services `gateway` and `B` share the database gateway.db; one process \
             owns a database; write `database = \"B.db\"`, or put the modules into one service",
            "t.toml:12: service.B.replicas: no replica would serve the modules; \
             write `replicas = 1`, or remove `[service.B]`",
            "t.toml:14: service.c.modules: service `c` hosts no module; list its modules, or remove `[service.c]`",
            "t.toml:15: service.c.listen: port 0 is another port at each start, which the other services cannot \
             know; write `listen = \"unix:run/c.sock\"`",
            "t.toml:16: service.c.speed: unknown key; \
             remove it; known here: `modules`, `listen`, `addresses`, `database`, `replicas`, `workers`",
            "t.toml:17: module.cart: module `cart` does not exist (modules: `products`, `payments`, `orders`); \
             remove the section",
        ]
    );
}

#[test]
fn a_unix_socket_is_no_address_of_a_service_over_tls() {
    let with = |address: &str| {
        let several = |service: &str| format!("[service.{service}]\nmodules = [\"{service}\"]\n");
        let text = ["products", "payments"].map(several).concat()
            + "[service.orders]\nmodules = [\"orders\"]\naddresses = [\"";
        found(&shop(), &(text + address + "\"]\n"))
    };
    assert_eq!(with("unix:/tmp/orders.sock"), Vec::<String>::new());
    assert_eq!(with("10.0.0.1:7001"), Vec::<String>::new());
    let both = with("10.0.0.1:7001\", \"unix:/tmp/orders.sock");
    let place = "t.toml:7: service.orders.addresses: ";
    let why = "unix:/tmp/orders.sock is a Unix socket, and service `orders` is reached over mutual TLS; \
               write ports only, `HOST:PORT`";
    assert!(both.contains(&format!("{place}{why}")), "{both:?}");
}

/// Queries and effects alone may have several processes behind them; what stores something may not.
#[test]
fn several_addresses_are_for_services_that_store_nothing() {
    let several = |service: &str| format!("[service.{service}]\nmodules = [\"{service}\"]\n");
    let text = ["products", "payments", "orders"].map(several).concat()
        + "[service.search]\nmodules = [\"search\"]\naddresses = [\"10.0.0.1:7001\", \"10.0.0.2:7001\"]\n";
    let mut model = shop();
    let methods = [("find", Kind::Query), ("index", Kind::Effect)];
    model.modules.push(module("search", vec![contract("search", &methods)]));
    assert_eq!(found(&model, &text), Vec::<String>::new());

    let search = model.modules.last_mut().expect("pushed above");
    search.has_tables = true;
    let place = "t.toml:9: service.search.addresses: module `search` has";
    let mend = "and 2 processes would each store their own; \
                write one address, or move the module to a service that has one";
    assert_eq!(found(&model, &text), [format!("{place} tables, {mend}")]);
    let search = model.modules.last_mut().expect("pushed above");
    search.has_tables = false;
    search.contracts = vec![contract("search", &[("add", Kind::Command)])];
    assert_eq!(found(&model, &text), [format!("{place} the command `add`, {mend}")]);
    // An effect that is a step of somebody's saga is stored under its key.
    let text = text.replace(
        "modules = [\"payments\"]\n",
        "modules = [\"payments\"]\naddresses = [\"10.0.0.1:7002\", \"10.0.0.2:7002\"]\n",
    );
    let found = found(&shop(), text.split("[service.search]").next().expect("a part"));
    assert!(found[0].contains("module `payments` has a part in the saga `orders.place_order`"), "{found:?}");
    assert_eq!(found.len(), 1);
}

#[test]
fn a_topology_without_services_is_told_what_to_write() {
    assert_eq!(
        found(&shop(), "[gateway]\n"),
        ["t.toml:1: service: the topology has no service; \
          write `[service.shop]` and below it `modules = [\"products\", \"payments\", \"orders\"]`"]
    );
}

#[test]
fn a_list_that_cannot_be_read_is_one_problem() {
    let text = format!("{SPLIT}[service.x]\nmodules = 3\n");
    assert_eq!(found(&shop(), &text).len(), 1, "{:?}", found(&shop(), &text));
}

#[test]
fn a_need_that_nobody_serves_is_named() {
    assert_eq!(
        spoiled(|shop| shop.modules[0].needs.push(contract("ledger", &[]))),
        ["module products: it needs contract `ledger`, which no module serves; \
          list the module that serves `ledger` in `main`, or name who serves it elsewhere with `[external.ledger]`, or \
          remove the `.needs::<..>()` from `products`"]
    );
}

#[test]
fn a_need_of_another_version_or_schema_is_named_by_method() {
    let differences = |problems: &[String]| -> Vec<String> {
        let against =
            "module orders: it was built against another contract `products` than module `products` serves: ";
        let said = problems.iter().filter_map(|problem| problem.strip_prefix(against)?.split("; ").next());
        said.map(str::to_owned).collect()
    };
    let problems = spoiled(|shop| {
        let need = &mut shop.modules[2].needs[0];
        need.methods[0].answer = serde_json::json!(true);
        need.methods[2].kind = Kind::Effect;
        need.methods[3].name = "find";
    });
    assert_eq!(
        differences(&problems),
        [
            "`find`: the callee does not have this method",
            "`hold.answer`: is an integer for the callee and of free form for the caller",
            "`sell`: is an effect for the caller and a command for the callee",
            "`product`: the caller does not know this method",
        ],
        "{problems:#?}"
    );
    let problems = spoiled(|shop| shop.modules[2].needs[0].version = 2);
    assert_eq!(
        differences(&problems),
        ["the caller has version 2 and the callee version 1, which is said to be another contract"]
    );
}

#[test]
fn a_contract_has_one_module_and_a_module_one_name() {
    assert_eq!(
        spoiled(|shop| shop.modules.push(module("catalogue", vec![products()]))),
        ["module catalogue: contract `products` is served by module `products` already; \
          remove `.serves(..)` from one of them; a contract has one module"]
    );
    assert_eq!(
        spoiled(|shop| shop.modules.push(module("orders", vec![]))),
        ["module orders: two modules have this name; \
          rename one in its `Module::new(..)`, or list it once in `main`"]
    );
    assert_eq!(
        spoiled(|shop| shop.modules.push(module("order_lines", vec![]))),
        ["module order_lines: `order_lines` cannot name a module, since it begins the names of its tables; \
          write lower-case letters and digits, a letter first, in `Module::new(..)`"]
    );
}

#[test]
fn http_prefixes_are_sound_and_claimed_once() {
    assert_eq!(
        spoiled(|shop| shop.modules[1].prefixes = &["/orders", "pay/", "/admin/x"]),
        [
            "module payments: `pay/` is no HTTP prefix; \
             write a path such as `/orders`, without a slash at its end and without parameters",
            "module payments: HTTP prefix `/admin/x` is below `/admin`, which the framework answers; \
             choose another prefix in `.routes(..)`",
            "module orders: HTTP prefix `/orders` is claimed by module `payments` already; \
             choose another prefix in `.routes(..)` of one of them",
        ]
    );
}

#[test]
fn a_plan_that_cannot_be_used_says_why() {
    let problems = PlanModel::of::<Forgetful>().err().unwrap();
    assert_eq!(
        spoiled(|shop| shop.modules[2].plan_problems.push(("orders.forgetful", problems))),
        [
            "saga orders.forgetful: step `hold` has neither `.undo(..)`, `.undo_by_key(..)` nor `.no_undo()`; \
             write one of them behind the step",
            "saga orders.forgetful: the plan has no pivot; write `plan.pivot(..)` for the step that decides",
        ]
    );
}

#[test]
fn a_plan_asks_only_what_its_module_declared_and_what_exists() {
    assert_eq!(
        spoiled(|shop| shop.modules[2].needs.retain(|need| need.name != "payments")),
        [
            "saga orders.place_order, step `charge`: it asks `payments.charge`, but module `orders` neither needs nor \
          serves contract `payments`; add `.needs::<..>()` with the client of `payments` to module `orders`"
        ]
    );
    assert_eq!(
        spoiled(|shop| {
            let steps = &mut shop.modules[2].plans[0].steps;
            steps[0].method = "hodl";
            steps[2].method = "recording_of_all";
            steps[3].method = "product";
            steps[1].undo = UndoModel::ByKey { contract: "products", method: "release" };
        }),
        [
            "saga orders.place_order, step `hold_stock`: it asks `products.hodl`, but contract `products` has no \
             such method; did you mean `hold`?",
            "saga orders.place_order, step `charge`: it runs in module `payments`, but its undo `products.release` in \
             module `products`; only the module that ran a step knows what there is to undo; \
             undo it by a method of a contract of module `payments`",
            "saga orders.place_order, step `charge`: its undo is the effect `products.release`, which the contract \
             declares as a command; let the plan and the module depend on the same version of the contract's crate",
            "saga orders.place_order, step `record`: it asks `orders.recording_of_all`, but contract `orders` has no \
             such method; known: `record`",
            "saga orders.place_order, step `sell`: it asks the command `products.product`, which the contract \
             declares as a query; let the plan and the module depend on the same version of the contract's crate",
        ]
    );
    let other = spoiled(|shop| {
        let again = shop.modules[2].plans[0].clone();
        shop.modules[0].needs = vec![payments(), contract("orders", &[("record", Kind::Command)])];
        shop.modules[0].plans.push(again);
    });
    assert_eq!(
        other,
        ["saga orders.place_order: modules `products` and `orders` both declare it; \
          rename one; a saga's name is stored and must differ from the others"]
    );
}

#[test]
fn the_list_ends_with_its_length() {
    let problems = Problems(check(&shop(), &topology("[service.a]\nmodules = [\"orders\", \"payments\"]\n")));
    assert_eq!(
        problems.to_string(),
        "t.toml:1: service: module `products` is in no service; \
         add \"products\" to the `modules` of a service, or `[service.products]`\n1 problem"
    );
}

#[test]
fn what_is_wrong_with_programs_outside_is_listed_by_line() {
    let text = r#"
[service.shop]
modules = ["products", "payments", "orders"]
[expose]
contracts = ["products", "prodcuts"]
[caller.Till]
contracts = ["products.hold", "products.hodl", "orders"]
[caller.idle]
contracts = []
[external.tax]
url = "https://tax.example"
contracts = ["products", "taxes", "vat"]
[external.far]
url = "http://tax.example:80"
contracts = ["vat"]
[external.odd]
url = "ftp://x"
contracts = ["vatt"]
speed = 1
[external.shop]
url = "http://127.0.0.1:1"
contracts = []
"#;
    let mut model = shop();
    let vat = contract("vat", &[("rate", Kind::Query), ("file", Kind::Command)]);
    model.modules[2].needs.push(vat);
    assert_eq!(
        found(&model, text),
        [
            "t.toml:5: expose.contracts: no module serves contract `prodcuts`; did you mean `products`?",
            "t.toml:6: caller.Till: `Till` cannot name a program; write lower-case letters, digits and dashes, a letter \
             first",
            "t.toml:7: caller.Till.contracts: contract `products` has no method `hodl`; did you mean `hold`?",
            "t.toml:7: caller.Till.contracts: contract `orders` is not exposed; add it to `contracts` of `[expose]`; there \
             now: `products`, `prodcuts`",
            "t.toml:9: caller.idle.contracts: `idle` may call nothing; list what it calls: `contracts = [..]`; exposed: \
             `products`, `prodcuts`",
            "t.toml:11: external.tax.url: `https://tax.example`: https is not spoken; put a proxy in front of it that does; \
             write `url = \"http://127.0.0.1:9400\"`",
            "t.toml:12: external.tax.contracts: contract `products` is served by module `products` already; remove it \
             here; a contract is served in one place",
            "t.toml:12: external.tax.contracts: no module needs contract `taxes`; known: `vat`",
            "t.toml:12: external.tax.contracts: `vat.file` is a command, and an external service has no inbox that would \
             run it once; an external service serves queries and effects: put the command into a module",
            "t.toml:14: external.far.url: requests to tax.example would leave this host in the clear, and the token with \
             them; put a proxy that speaks TLS on loopback, or write `unencrypted = true` where the network is trusted",
            "t.toml:15: external.far.contracts: contract `vat` is served by external service `tax` already; remove it here \
             or there",
            "t.toml:15: external.far.contracts: `vat.file` is a command, and an external service has no inbox that would \
             run it once; an external service serves queries and effects: put the command into a module",
            "t.toml:17: external.odd.url: `ftp://x`: this is no URL that begins with http://; write `url = \
             \"http://127.0.0.1:9400\"`",
            "t.toml:18: external.odd.contracts: no module needs contract `vatt`; did you mean `vat`?",
            "t.toml:19: external.odd.speed: unknown key; remove it; known here: `url`, `contracts`, `token_file`, \
             `unencrypted`",
            "t.toml:20: external.shop: `shop` is the name of a service of this topology; give the program another name",
            "t.toml:22: external.shop.contracts: `shop` serves nothing; list what it serves: `contracts = [..]`",
        ]
    );
}

#[test]
fn a_need_is_served_here_or_outside_or_is_optional() {
    let text = "[service.shop]\nmodules = [\"products\", \"payments\", \"orders\"]\n";
    let outside = format!("{text}[external.tax]\nurl = \"http://localhost:9400\"\ncontracts = [\"vat\"]\n");
    let mut model = shop();
    model.modules[2].needs.push(contract("vat", &[("rate", Kind::Query)]));
    let missing = found(&model, text);
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].contains("it needs contract `vat`, which no module serves"), "{missing:?}");
    assert!(missing[0].contains("[external.vat]"), "{missing:?}");
    assert_eq!(found(&model, &outside), Vec::<String>::new());
    model.modules[2].optional.push("vat");
    assert_eq!(found(&model, text), Vec::<String>::new());
}

#[test]
fn no_saga_asks_an_external_service() {
    let text = "[service.shop]\nmodules = [\"products\", \"orders\"]\n\
                [external.cards]\nurl = \"http://127.0.0.1:1\"\ncontracts = [\"payments\"]\n";
    let mut model = shop();
    model.modules.remove(1);
    let found = found(&model, text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("saga orders.place_order, step `charge` asks it"), "{found:?}");
}

#[test]
fn certificates_that_are_missing_are_named_with_the_command_that_makes_them() {
    let text = format!("{SPLIT}listen = \"10.0.0.5:7001\"\n[trust]\nkey = \"k/{{service}}.key\"\n");
    assert_eq!(found(&shop(), &text), Vec::<String>::new(), "an address beyond loopback is fine");
    let missing = super::missing_certificates(&topology(&text), "shop", ["orders", "gateway"]);
    let missing: Vec<String> = missing.iter().map(Problem::to_string).collect();
    let because = "does not exist; service `orders` at 10.0.0.5:7001 is reached over mutual TLS, so every process needs \
                   a certificate; make it with `shop certs --topology t.toml`, or put that of your own authority there";
    assert_eq!(
        missing,
        [
            format!("t.toml:9: trust.authority: certs/authority.pem {because}"),
            format!("t.toml:9: trust.certificate: certs/orders.pem {because}"),
            format!("t.toml:10: trust.key: k/orders.key {because}"),
            format!("t.toml:9: trust.certificate: certs/gateway.pem {because}"),
            format!("t.toml:10: trust.key: k/gateway.key {because}"),
        ]
    );
    assert_eq!(super::missing_certificates(&topology(SPLIT), "shop", ["orders"]), []);
}
