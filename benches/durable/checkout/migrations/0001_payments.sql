CREATE TABLE payments_payment (
    id bytea PRIMARY KEY NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    paid_at bigint NOT NULL,
    credited_at bigint
);
