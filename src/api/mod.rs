//! Health, the query API and the page.
