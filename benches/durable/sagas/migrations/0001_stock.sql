CREATE TABLE stock_product (
    id bigint PRIMARY KEY NOT NULL,
    stock bigint NOT NULL CHECK (stock >= 0),
    reserved bigint NOT NULL CHECK (reserved >= 0)
);
INSERT INTO stock_product (id, stock, reserved)
WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < 999)
SELECT n, 1000000000, 0 FROM number;
