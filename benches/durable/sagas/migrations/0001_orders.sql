CREATE TABLE orders_order (
    id bigint PRIMARY KEY NOT NULL,
    product bigint NOT NULL,
    placed_at bigint NOT NULL
);
