-- The catalogue with its stock, filled with what a load orders from.
CREATE TABLE products_product (
    id text PRIMARY KEY NOT NULL,
    stock bigint NOT NULL CHECK (stock >= 0),
    held bigint NOT NULL CHECK (held >= 0)
);
INSERT INTO products_product (id, stock, held)
WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < 999)
SELECT printf('BENCH-%04d', n), 1000000000, 0 FROM number;
