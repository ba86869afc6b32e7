//! The edge over real sockets: one program, so that it is linked once.

mod edge;
mod frames;
mod parity;
mod problems;
mod serve;
mod services;
mod streams;
mod world;
