CREATE TABLE payments_payment (
    id bigint PRIMARY KEY NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    credited boolean NOT NULL
);
