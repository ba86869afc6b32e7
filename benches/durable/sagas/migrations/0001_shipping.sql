CREATE TABLE shipping_parcel (
    id bigint PRIMARY KEY NOT NULL,
    product bigint NOT NULL
);
