//! Materialises one row per execution in SQL.
