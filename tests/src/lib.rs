//! What the tests share: the simulation of the whole system.

pub mod sim;
