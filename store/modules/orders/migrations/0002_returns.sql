-- A return that was booked elsewhere and imported, with what came of it.
CREATE TABLE orders_return (
    invoice text PRIMARY KEY NOT NULL,
    user_id bytea,
    returned_at bigint NOT NULL,
    refunded_minor bigint NOT NULL,
    unmatched_lines bigint NOT NULL,
    unmatched_minor bigint NOT NULL
);

-- Units that came back without an order that they could have come from.
CREATE TABLE orders_unmatched (
    invoice text NOT NULL,
    line bigint NOT NULL,
    product_id text NOT NULL,
    name text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    unit_price_minor bigint NOT NULL,
    PRIMARY KEY (invoice, line)
);
