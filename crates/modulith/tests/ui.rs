//! One mistake a file, and what is said about it. `TRYBUILD=overwrite` writes the expected texts anew; read them.

#[test]
fn a_mistake_is_told_where_it_was_made() {
    trybuild::TestCases::new().compile_fail("tests/ui/*/*.rs");
}
