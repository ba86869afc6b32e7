//! The rules of compatibility against real bytes: what they call readable is read, by every type of a corpus from every
//! other; and each rule by name, in both directions.

mod anything;
mod corpus;
mod rules;
