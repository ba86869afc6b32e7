//! Part of a deliberate violation.
