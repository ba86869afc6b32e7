//! The edge over real sockets: one program, so that it is linked once.

mod edge;
mod parity;
mod problems;
mod proxy;
mod serve;
mod world;
