-- `invoice` is the number of an order that was booked elsewhere and imported: it comes once. `charge` is the
-- provider's number of a payment that the ledger did not take itself.
CREATE TABLE orders_order (
    id bytea PRIMARY KEY NOT NULL,
    user_id bytea,
    status text NOT NULL,
    currency text NOT NULL,
    total_minor bigint NOT NULL CHECK (total_minor > 0),
    refunded_minor bigint NOT NULL CHECK (refunded_minor >= 0 AND refunded_minor <= total_minor),
    client_reference text,
    invoice text,
    charge text,
    placed_at bigint NOT NULL
);
CREATE INDEX orders_order_user ON orders_order (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX orders_order_reference ON orders_order (user_id, client_reference, id) WHERE client_reference IS NOT NULL;
CREATE UNIQUE INDEX orders_order_invoice ON orders_order (invoice) WHERE invoice IS NOT NULL;

-- The same product may stand on two lines, at two prices.
CREATE TABLE orders_line (
    order_id bytea NOT NULL,
    line bigint NOT NULL,
    product_id text NOT NULL,
    name text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    returned bigint NOT NULL CHECK (returned >= 0 AND returned <= quantity),
    unit_price_minor bigint NOT NULL CHECK (unit_price_minor > 0),
    PRIMARY KEY (order_id, line)
);
