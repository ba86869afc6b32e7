-- The ledger: one row a payment, one a repayment of it. The check keeps more from being repaid than was paid.
CREATE TABLE payments_payment (
    id bytea PRIMARY KEY NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    repaid_minor bigint NOT NULL CHECK (repaid_minor >= 0 AND repaid_minor <= amount_minor),
    currency text NOT NULL,
    charge text,
    paid_at bigint NOT NULL,
    credited_at bigint
);

CREATE TABLE payments_repayment (
    payment bytea NOT NULL,
    reference text NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    repaid_at bigint NOT NULL,
    PRIMARY KEY (payment, reference)
);
