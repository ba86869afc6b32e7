CREATE TABLE orders_order (
    id bytea PRIMARY KEY NOT NULL,
    total_minor bigint NOT NULL CHECK (total_minor > 0),
    placed_at bigint NOT NULL
);
CREATE TABLE orders_line (
    order_id bytea NOT NULL,
    line bigint NOT NULL,
    product_id text NOT NULL,
    name text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    unit_price_minor bigint NOT NULL CHECK (unit_price_minor > 0),
    PRIMARY KEY (order_id, line)
);
-- What others are to hear of, in the order in which it happened.
CREATE TABLE orders_outbox (
    position bigint PRIMARY KEY NOT NULL,
    kind text NOT NULL,
    key bytea NOT NULL,
    body bytea NOT NULL,
    at bigint NOT NULL
);
