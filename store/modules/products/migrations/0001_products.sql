-- The catalogue with its stock. `folded` is the name in lower case, for searching.
CREATE TABLE products_product (
    id text PRIMARY KEY NOT NULL,
    name text NOT NULL,
    folded text NOT NULL,
    price_minor bigint NOT NULL CHECK (price_minor > 0),
    currency text NOT NULL,
    stock bigint NOT NULL CHECK (stock >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    sold bigint NOT NULL CHECK (sold >= 0),
    supplied bigint NOT NULL,
    CHECK (stock + held + sold = supplied)
);

-- What was supplied by whom, so that a supply that is announced again adds nothing.
CREATE TABLE products_supply (
    source text NOT NULL,
    product text NOT NULL,
    units bigint NOT NULL,
    PRIMARY KEY (source, product)
);
