use super::*;
use crate::model::ModuleModel;

fn model(modules: &[&'static str]) -> AppModel {
    let module = |name: &&'static str| ModuleModel {
        name,
        contracts: Vec::new(),
        needs: Vec::new(),
        optional: Vec::new(),
        plans: Vec::new(),
        plan_problems: Vec::new(),
        prefixes: &[],
        has_tables: true,
    };
    AppModel { name: "shop", modules: modules.iter().map(module).collect() }
}

fn split(modules: &[&str]) -> Topology {
    let mut split = Topology::built_in("shop", &[]);
    split.services =
        modules.iter().flat_map(|module| Topology::built_in(module, &[module]).services).collect();
    split
}

fn stored(data: &Path) -> String {
    std::fs::read_to_string(data.join(FILE)).unwrap()
}

#[test]
fn the_first_start_is_remembered_and_the_same_one_accepted_again() {
    let data = tempfile::tempdir().unwrap();
    let (topology, model) = (Topology::built_in("shop", &["cart", "orders"]), model(&["cart", "orders"]));
    remember(data.path(), &topology, &model).unwrap();
    let first = stored(data.path());
    assert_eq!(
        first,
        "# Where the data of each module is. Written by the application; do not edit.\n\
         format = 1\n\n[modules]\ncart = \"shop.db\"\norders = \"shop.db\"\n"
    );
    remember(data.path(), &topology, &model).unwrap();
    assert_eq!(stored(data.path()), first);
    assert!(!data.path().join("placement.toml.new").exists());
}

#[test]
fn a_topology_that_puts_data_elsewhere_is_refused_by_module() {
    let data = tempfile::tempdir().unwrap();
    let modules = ["cart", "orders"];
    remember(data.path(), &Topology::built_in("shop", &modules), &model(&modules)).unwrap();
    let first = stored(data.path());
    let refused = remember(data.path(), &split(&modules), &model(&modules)).unwrap_err().to_string();
    let lines: Vec<&str> = refused.lines().collect();
    assert_eq!(
        lines[1],
        "the data of module `orders` is in shop.db, but the topology puts the module into service `orders` with \
         orders.db; start with the topology that made the data, or name another folder with --data (moving data \
         comes in a later version)"
    );
    assert!(lines.len() == 2 && lines[0].contains("module `cart`"), "{refused}");
    assert_eq!(stored(data.path()), first);
}

#[test]
fn new_modules_are_added_and_absent_ones_are_kept() {
    let data = tempfile::tempdir().unwrap();
    remember(data.path(), &split(&["cart", "orders"]), &model(&["cart", "orders"])).unwrap();
    remember(data.path(), &split(&["orders", "users"]), &model(&["orders", "users"])).unwrap();
    let placement = read(&data.path().join(FILE)).unwrap().unwrap();
    let modules: Vec<&str> = placement.modules.keys().map(String::as_str).collect();
    assert_eq!(modules, ["cart", "orders", "users"]);
    // The module comes back: its data has not moved meanwhile.
    assert!(remember(data.path(), &Topology::built_in("shop", &["cart"]), &model(&["cart"])).is_err());
}

#[test]
fn the_same_file_written_in_another_way_is_the_same() {
    let data = tempfile::tempdir().unwrap();
    let model = model(&["cart"]);
    let mut topology = split(&["cart"]);
    for database in
        ["cart.db".into(), "./x/..//cart.db".into(), data.path().canonicalize().unwrap().join("cart.db")]
    {
        topology.services[0].database = Some(database);
        remember(data.path(), &topology, &model).unwrap();
    }
    assert!(stored(data.path()).contains("cart = \"cart.db\""));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_and_stays() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join(FILE);
    let (topology, model) = (split(&["cart"]), model(&["cart"]));
    for (text, reason) in [
        ("", "`format` is not 1"),
        ("format = 1\n", "missing field `modules`"),
        ("format = 1\n[modules]\ncart = 7\n", "invalid type"),
        ("format = 1\n[modules\n", "placement.toml: "),
        ("format = 2\n[places]\n", "written by a newer version (format 2, this one knows 1)"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = remember(data.path(), &topology, &model).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("placement.toml"), "{text:?}: {error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}

#[test]
fn a_lost_file_is_not_made_again_beside_the_data_of_another_topology() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("shop.db"), "").unwrap();
    let lost = remember(data.path(), &split(&["cart"]), &model(&["cart"])).unwrap_err();
    assert!(
        matches!(&lost, PlacementError::Lost { database, .. } if database == Path::new("shop.db")),
        "{lost}"
    );
    // The topology that made the data names its database.
    remember(data.path(), &Topology::built_in("shop", &["cart"]), &model(&["cart"])).unwrap();
}

#[test]
fn processes_that_start_at_once_lose_no_entry() {
    let names: Vec<&'static str> = vec!["a", "b", "c", "d", "e", "f", "g", "h"];
    let data = tempfile::tempdir().unwrap();
    let start = std::sync::Barrier::new(names.len());
    std::thread::scope(|scope| {
        for name in &names {
            let (start, data) = (&start, data.path());
            scope.spawn(move || {
                start.wait();
                // Each opens the lock file itself, as a process would.
                remember(data, &split(&[name]), &model(&[name])).unwrap();
            });
        }
    });
    let placement = read(&data.path().join(FILE)).unwrap().unwrap();
    assert_eq!(placement.modules.keys().collect::<Vec<_>>(), names);
}
