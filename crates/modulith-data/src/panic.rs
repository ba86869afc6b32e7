//! Panics of a module's code, which end its piece of work and nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use modulith_core::{Fault, FaultKind};

/// Runs code of a module; a panic reads like a fault.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(Fault::new(FaultKind::Panicked, panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the module's code panicked: {}", text.unwrap_or("without a message"))
}
