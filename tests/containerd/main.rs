//! The shim under Debian's containerd: the life of a container with `ctr`, and pods as kubelet makes them.
//!
//! Needs root, containerd, busybox-static, containernetworking-plugins, protoc and python3-grpcio. Each test has a containerd of
//! its own.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod daemon;
mod fork;
mod life;
mod loggers;
mod many;
mod pods;
