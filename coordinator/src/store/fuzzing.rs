//! What would be bound to a statement, for random input. Built for `make fuzz`
//! alone.

use chrono::{DateTime, Datelike as _, Utc};
use sqlx::{Arguments as _, Encode, Postgres, Type, postgres::PgArguments};

/// Binds a value. Panics where it has no bytes for Postgres.
pub(crate) fn bind<'q, T: Encode<'q, Postgres> + Type<Postgres> + 'q>(value: T) {
    assert!(PgArguments::default().add(value).is_ok());
}

/// Binds a text. Panics where Postgres can hold none such.
pub(crate) fn bind_text(text: &str) {
    assert!(!text.contains('\0'), "{text:?}");
    bind(text);
}

/// Binds a time. Panics where Postgres can hold none such.
pub(crate) fn bind_time(time: DateTime<Utc>) {
    assert!((-4712..=294_275).contains(&time.year()), "{time}");
    bind(time);
}
