use serde_json::{Value, json};

use super::{mermaid, table};
use crate::check::fixture::shop;
use crate::topology::Topology;

fn monolith() -> Topology {
    Topology::built_in("shop", &["products", "payments", "orders"])
}

fn split() -> Topology {
    let mut split = monolith();
    split.services =
        ["products", "orders"].iter().flat_map(|name| Topology::built_in(name, &[name]).services).collect();
    split.services[1].modules.push("payments".to_owned());
    split
}

fn fingerprint(contract: &str) -> String {
    let shop = shop();
    let module = shop.provider(contract).unwrap();
    module.contracts[0].fingerprint()
}

#[test]
fn the_start_table_tells_where_each_need_resolves() {
    assert_eq!(
        table(&shop(), &monolith()),
        "\
MODULE    SERVICE  SERVES    NEEDS
products  shop     products
payments  shop     payments
orders    shop     orders    products -> local, payments -> local
"
    );
    assert_eq!(
        table(&shop(), &split()),
        "\
MODULE    SERVICE   SERVES    NEEDS
products  products  products
payments  orders    payments
orders    orders    orders    products -> products, payments -> local
"
    );
}

#[test]
fn the_picture_of_a_split_shows_its_cuts() {
    let expected = format!(
        "\
flowchart LR
  subgraph service_products[\"service products · products.db\"]
    module_products[\"products<br/>/products\"]
    contract_products([\"products v1 · {products}<br/>command hold<br/>command release<br/>command sell<br/>query product\"])
  end
  subgraph service_orders[\"service orders · orders.db\"]
    module_payments[\"payments\"]
    contract_payments([\"payments v1 · {payments}<br/>effect charge<br/>effect refund\"])
    module_orders[\"orders<br/>/orders\"]
    contract_orders([\"orders v1 · {orders}<br/>command record\"])
  end
  module_products --- contract_products
  module_payments --- contract_payments
  module_orders --- contract_orders
  module_orders -.-> contract_products
  module_orders --> contract_payments
  gateway{{{{\"gateway\"}}}}
  gateway -->|\"/products\"| module_products
  gateway -->|\"/orders\"| module_orders
  subgraph saga_orders_place_order[\"saga orders.place_order v1\"]
    direction LR
    subgraph saga_orders_place_order_run0[\"one transaction · products\"]
      saga_orders_place_order_0[\"hold_stock<br/>products.hold\"]
    end
    subgraph saga_orders_place_order_run1[\"effect · orders\"]
      saga_orders_place_order_1[\"charge<br/>payments.charge\"]
    end
    subgraph saga_orders_place_order_run2[\"one transaction · orders\"]
      saga_orders_place_order_2[\"record<br/>orders.record<br/>pivot\"]
    end
    subgraph saga_orders_place_order_run3[\"one transaction · products\"]
      saga_orders_place_order_3[\"sell<br/>products.sell\"]
    end
    saga_orders_place_order_0 --> saga_orders_place_order_1 --> saga_orders_place_order_2 --> saga_orders_place_order_3
  end
",
        products = fingerprint("products"),
        payments = fingerprint("payments"),
        orders = fingerprint("orders"),
    );
    assert_eq!(mermaid(&shop(), &split()), expected);
}

#[test]
fn the_data_names_everything() {
    let all = super::json(&shop(), &split());
    assert_eq!(
        all["services"],
        json!([
            {"name": "products", "modules": ["products"], "database": "products.db", "replicas": 1},
            {"name": "orders", "modules": ["orders", "payments"], "database": "orders.db", "replicas": 1},
        ])
    );
    assert_eq!(
        all["modules"][2],
        json!({
            "name": "orders",
            "service": "orders",
            "serves": ["orders"],
            "needs": [
                {"contract": "products", "module": "products", "resolves": "products"},
                {"contract": "payments", "module": "payments", "resolves": "local"},
            ],
            "prefixes": ["/orders"],
            "sagas": ["orders.place_order"],
        })
    );
    assert_eq!(
        all["contracts"][1],
        json!({
            "name": "payments",
            "version": 1,
            "module": "payments",
            "fingerprint": fingerprint("payments"),
            "methods": [{"name": "charge", "kind": "effect"}, {"name": "refund", "kind": "effect"}],
        })
    );
    assert_eq!(all["events"], json!([]));
    let saga = &all["sagas"][0];
    assert_eq!(saga["pivot"], "record");
    assert_eq!(
        saga["steps"][1],
        json!({
            "name": "charge",
            "contract": "payments",
            "method": "charge",
            "kind": "effect",
            "needs": ["hold_stock"],
            "undo": "payments.refund",
        })
    );
}

#[test]
fn steps_fuse_in_the_monolith_and_are_cut_in_a_split() {
    let saga = |topology: &Topology| super::json(&shop(), topology)["sagas"][0].clone();
    let runs = |saga: &Value| {
        let runs = saga["runs"].as_array().unwrap();
        runs.iter().map(|run| run["steps"].as_array().unwrap().len()).collect::<Vec<_>>()
    };
    let whole = saga(&monolith());
    assert_eq!(runs(&whole), [1, 1, 2], "an effect always ends a run");
    assert_eq!(
        whole["runs"][2],
        json!({"service": "shop", "kind": "transaction", "steps": ["record", "sell"]})
    );
    let cut = saga(&split());
    assert_eq!(runs(&cut), [1, 1, 1, 1]);
    assert_eq!(
        cut["cuts"],
        json!([
            {"after": "hold_stock", "before": "charge", "because": "effect"},
            {"after": "charge", "before": "record", "because": "effect"},
            {"after": "record", "before": "sell", "because": "service"},
        ])
    );
}
