//! What is wrong with a topology or an application: where, what, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `None` when it is not in a file but in the application's code, or in the built-in topology.
    pub file: Option<PathBuf>,
    /// Counted from 1.
    pub line: Option<usize>,
    /// The key of the file, such as `service.cart.modules`, or the declaration, such as `module orders`.
    pub key: String,
    pub message: String,
    /// What would mend it.
    pub mend: String,
}

impl Problem {
    /// A problem of the application's code.
    pub(crate) fn in_code(
        declaration: impl Into<String>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { file: None, line: None, key: declaration.into(), message: message.into(), mend: mend.into() }
    }
}

/// `store/topology/split.toml:12: service.cart.modules: module `carts` does not exist; did you mean `cart`?`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.message, self.mend)
    }
}

/// Everything that is wrong, one per line, and how many they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// # Errors
    ///
    /// The problems, if there are any.
    pub fn none_of(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 problem"),
            count => write!(f, "{count} problems"),
        }
    }
}

impl std::error::Error for Problems {}
