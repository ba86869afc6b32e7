-- A user without e-mail address and password is a customer of an imported order book; `customer` is its number.
CREATE TABLE users_user (
    id bytea PRIMARY KEY NOT NULL,
    email text UNIQUE,
    name text NOT NULL,
    password_hash text,
    customer text UNIQUE,
    registered_at bigint NOT NULL
);
