//! Our errors in the words of ttrpc.

use std::error::Error as _;

use containerd_shim::protos::ttrpc::{self, Code as Word};

use crate::error::{Code, Error};

/// The error as containerd is to see it: what failed with all its causes, and a word it acts on.
///
/// It goes by the word only: what is `NOT_FOUND` has ended or was deleted already, and is not tried again.
pub(super) fn of(error: Error) -> ttrpc::Error {
    let word = match error.code() {
        Code::NotFound => Word::NOT_FOUND,
        Code::Exists => Word::ALREADY_EXISTS,
        Code::WrongState | Code::Busy => Word::FAILED_PRECONDITION,
        Code::Usage | Code::InvalidName => Word::INVALID_ARGUMENT,
        Code::NotSupported => Word::UNIMPLEMENTED,
        Code::Denied => Word::PERMISSION_DENIED,
        Code::NoSpace => Word::RESOURCE_EXHAUSTED,
        _ => Word::UNKNOWN,
    };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        message = format!("{message}: {e}");
        cause = e.source();
    }
    ttrpc::Error::RpcStatus(ttrpc::get_status(word, message))
}
