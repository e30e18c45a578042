//! What a database is asked, in its own words.
//!
//! Both databases get nearly the same SQL; where they differ, [`Dialect`] says how. Values are always bound, never part of
//! the SQL.

use crate::columns;

/// In which words a database is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// A whole number wide enough for [`Kind::Integer`](super::database::Kind::Integer).
    pub(super) fn integer(self, expression: &str) -> String {
        match self {
            Dialect::Sqlite => expression.to_owned(),
            Dialect::Postgres => format!("({expression})::bigint"),
        }
    }

    /// Of what is beside the rows, as `e`: that it is beside the row `t`.
    pub(super) fn is_beside(self) -> &'static str {
        match self {
            Dialect::Sqlite => columns::IS_BESIDE_BY_TIME,
            Dialect::Postgres => columns::IS_BESIDE,
        }
    }

    /// A number for [`Kind::Real`](super::database::Kind::Real).
    pub(super) fn real(self, expression: &str) -> String {
        match self {
            Dialect::Sqlite => expression.to_owned(),
            Dialect::Postgres => format!("({expression})::double precision"),
        }
    }

    /// A timestamp as `YYYY-MM-DD HH:MM:SS.ffffff`, which is how SQLite holds it.
    pub(super) fn time_text(self, expression: &str) -> String {
        match self {
            Dialect::Sqlite => expression.to_owned(),
            Dialect::Postgres => format!("to_char({expression}, 'YYYY-MM-DD HH24:MI:SS.US')"),
        }
    }

    /// A timestamp as whole seconds since 1970.
    pub(super) fn epoch(self, expression: &str) -> String {
        match self {
            Dialect::Sqlite => format!("CAST(strftime('%s', {expression}) AS INTEGER)"),
            Dialect::Postgres => format!("floor(extract(epoch FROM {expression}))::bigint"),
        }
    }

    /// Text that is compared byte by byte whatever the database's language is.
    pub(super) fn bytewise(self, expression: &str) -> String {
        match self {
            Dialect::Sqlite => expression.to_owned(),
            Dialect::Postgres => format!("({expression}) COLLATE \"C\""),
        }
    }

    /// The last `characters` of a text.
    pub(super) fn ending(self, expression: &str, characters: usize) -> String {
        match self {
            Dialect::Sqlite => format!("substr({expression}, -{characters})"),
            Dialect::Postgres => format!("right({expression}, {characters})"),
        }
    }

    /// Whether a text has more than one line, whatever space is at its end.
    pub(super) fn has_lines(self, expression: &str) -> String {
        match self {
            Dialect::Sqlite => {
                format!("instr(rtrim({expression}, ' ' || char(9) || char(10) || char(13)), char(10)) > 0")
            }
            Dialect::Postgres => format!("strpos(rtrim({expression}, E' \\t\\n\\r'), E'\\n') > 0"),
        }
    }

    /// A column whose index is not worth using when it has `few` values: SQLite, which does not know how many there are,
    /// would prefer it to the index on the time, and read a third of the table.
    pub(super) fn unindexed(self, few: bool, column: &str) -> String {
        match self {
            Dialect::Sqlite if few => format!("+{column}"),
            _ => column.to_owned(),
        }
    }

    /// The operator that finds text regardless of case.
    pub(super) fn like(self) -> &'static str {
        match self {
            Dialect::Sqlite => "LIKE",
            Dialect::Postgres => "ILIKE",
        }
    }
}

/// A value that stands in for a placeholder.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bind {
    Text(String),
    Integer(i64),
}

/// SQL with its values.
#[derive(Debug, Clone)]
pub(super) struct Sql {
    pub(super) dialect: Dialect,
    pub(super) text: String,
    pub(super) binds: Vec<Bind>,
}

impl Sql {
    pub(super) fn new(dialect: Dialect, text: impl Into<String>) -> Sql {
        Sql {
            dialect,
            text: text.into(),
            binds: Vec::new(),
        }
    }

    /// The statement that tells how this one would be carried out.
    #[cfg(test)]
    pub(super) fn explained(mut self) -> Sql {
        let explain = match self.dialect {
            Dialect::Sqlite => "EXPLAIN QUERY PLAN ",
            Dialect::Postgres => "EXPLAIN ",
        };
        self.text.insert_str(0, explain);
        self
    }

    /// Whether these words are in it.
    #[cfg(test)]
    pub(super) fn says(&self, words: &str) -> bool {
        self.text.contains(words)
    }

    pub(super) fn push(&mut self, text: &str) -> &mut Sql {
        self.text.push_str(text);
        self
    }

    pub(super) fn text(&mut self, value: impl Into<String>) -> &mut Sql {
        self.bind(Bind::Text(value.into()), "::text")
    }

    pub(super) fn integer(&mut self, value: i64) -> &mut Sql {
        self.bind(Bind::Integer(value), "::bigint")
    }

    /// A timestamp, given as `YYYY-MM-DD HH:MM:SS.ffffff`.
    pub(super) fn time(&mut self, value: &str) -> &mut Sql {
        self.bind(Bind::Text(value.to_owned()), "::text::timestamp")
    }

    /// `(a, b, c)`
    pub(super) fn texts(&mut self, values: &[String]) -> &mut Sql {
        self.push("(");
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.push(", ");
            }
            self.text(value);
        }
        self.push(")")
    }

    fn bind(&mut self, value: Bind, cast: &str) -> &mut Sql {
        self.binds.push(value);
        match self.dialect {
            Dialect::Sqlite => self.text.push('?'),
            Dialect::Postgres => {
                let placeholder = format!("${}{cast}", self.binds.len());
                self.text.push_str(&placeholder);
            }
        }
        self
    }
}
