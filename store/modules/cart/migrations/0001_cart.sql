CREATE TABLE cart_line (
    user_id bytea NOT NULL,
    product_id text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    added_at bigint NOT NULL,
    PRIMARY KEY (user_id, product_id)
);
