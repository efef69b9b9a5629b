//! Images: what becomes a base and what is refused, from registries and to them, and there and back again.

pub(crate) mod built;
mod hostile;
mod incoming;
mod registries;
mod roundtrip;
mod running;
