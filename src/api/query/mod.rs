//! The query API under `/api/v1`: what is in the table of executions, by filter, in numbers, as it is written.
//!
//! [`QueryApi::answer`] is a plain function from request to response; the listener belongs to [`crate::listen`].
//!
//! # Invariants
//!
//! * Nothing is written. The pool is the API's own, so that no question, however dear, holds up the ledger.
//! * A caller whose token names an organization sees rows of that organization only: the condition is part of every
//!   statement, since every statement is made by [`Filter::to_sql`](filter::Filter::to_sql).
//! * The first four paths answer as the backend's own API does; beside what its clients know, nothing is in the rows.
//! * Answers are `{"success": true, "data": …}`, lists with `count`; errors
//!   `{"success": false, "error": {"message", "code"}}`.
//! * The memory that answers take is bounded, whatever is asked by however many; see [`memory_bound`].
//! * Without tokens the API answers only to names of this machine (unless it is said to be insecure): a page of a
//!   stranger's that makes its own name point to 127.0.0.1 gets nothing.

mod aggregate;
mod answer;
mod auth;
mod database;
mod errors;
mod filter;
#[cfg(test)]
mod limits;
mod listing;
mod live;
mod packed;
mod parameters;
mod pipeline;
#[cfg(test)]
mod plans;
mod row;
mod sql;
mod stats;
mod timestamp;
mod visitors;

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use answer::memory_bound;
pub use auth::ApiToken;
pub use filter::RowsShown;
pub use pipeline::{ExporterRules, PipelineReport};

use crate::listen::{Body, Unauthorized};
use answer::{Answer, Seats};
use auth::Access;
use database::{Database, Dialect};
use live::Live;
use parameters::Parameters;

/// What is served; see `database` and `api` in the configuration. `Debug` shows neither the URL nor who may ask.
#[derive(Clone, Default)]
pub struct QueryOptions {
    /// `database.url`
    pub url: String,
    /// `database.schema`
    pub schema: Option<String>,
    /// `database.table`
    pub table: String,
    /// `api.rows`
    pub rows: RowsShown,
    /// `api.signoz_url`
    pub signoz_url: Option<String>,
    /// `api.auth.bearer_tokens`; none: everybody who can connect.
    pub tokens: Vec<ApiToken>,
    /// `api.auth.basic_users`: names and passwords of users who see all rows.
    pub users: Vec<(String, String)>,
    /// `api.auth.insecure`: without tokens and users, answer whatever name the request was sent to.
    pub insecure: bool,
}

impl fmt::Debug for QueryOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("QueryOptions");
        shown
            .field("schema", &self.schema)
            .field("table", &self.table)
            .field("rows", &self.rows);
        shown.finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The configuration cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(&'static str),
    /// The caller may not see this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The request was meant for another server.
    #[error(
        "this API answers to localhost and addresses only; set api.auth.bearer_tokens, api.auth.basic_users, or api.auth.insecure"
    )]
    Misdirected,
    /// No or wrong credentials.
    #[error("{0}")]
    Unauthorized(#[from] Unauthorized),
    /// Too many live clients.
    #[error("there are as many live clients as are served; try again later")]
    Busy,
    /// As many answers are being made as there is memory for, or as many rows looked for as there are connections.
    #[error("as many answers are being made as there is room for; try again later")]
    Crowded,
    /// The answer would take more memory than one may.
    #[error("the answer would take more than {most} MiB: {narrow}", most = answer::ANSWER >> 20)]
    TooLarge {
        /// What to ask for instead.
        narrow: &'static str,
    },
    /// The database does not answer.
    #[error("the database does not answer (database.url): {0}")]
    Unavailable(String),
    /// A table is not there, or not yet.
    #[error("the database does not answer (database.url): {0}")]
    TableMissing(String),
}

impl QueryError {
    fn invalid(parameter: &str, message: &str) -> QueryError {
        QueryError::Invalid(format!("{parameter} {message}"))
    }

    /// Whether the same question can have an answer later.
    pub fn is_retryable(&self) -> bool {
        self.is_of_database() || matches!(self, QueryError::Busy | QueryError::Crowded)
    }

    fn is_of_database(&self) -> bool {
        matches!(self, QueryError::Unavailable(_) | QueryError::TableMissing(_))
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            QueryError::Configuration(_) => (StatusCode::INTERNAL_SERVER_ERROR, "CONFIGURATION_ERROR"),
            QueryError::Invalid(_) => (StatusCode::BAD_REQUEST, "INVALID_PARAMETER"),
            QueryError::NotFound(_) => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            QueryError::Forbidden(_) => (StatusCode::FORBIDDEN, "FORBIDDEN"),
            QueryError::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "MISDIRECTED_REQUEST"),
            QueryError::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            QueryError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_CLIENTS"),
            QueryError::Crowded => (StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_QUESTIONS"),
            QueryError::TooLarge { .. } => (StatusCode::BAD_REQUEST, "ANSWER_TOO_LARGE"),
            QueryError::Unavailable(_) | QueryError::TableMissing(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "DATABASE_UNAVAILABLE")
            }
        }
    }
}

/// Answers questions; cheap to clone.
#[derive(Clone)]
pub struct QueryApi {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    seats: Seats,
    /// Quoted.
    table: String,
    /// Quoted.
    beside: String,
    /// Quoted.
    hours: String,
    shown: RowsShown,
    signoz_url: Option<String>,
    access: Access,
    pipeline: Box<dyn Fn() -> PipelineReport + Send + Sync>,
    live: Live,
    shutdown: CancellationToken,
}

/// A question: what remains of a request once it is known what it is about.
struct Asked {
    parameters: Parameters,
    /// The only organization that the caller may see.
    scope: Option<String>,
    now: DateTime<Utc>,
}

/// The paths under `/api/v1`.
enum Route<'a> {
    Question(Question<'a>),
    Live,
    Pipeline,
    OpenApi,
}

/// What is asked of the database.
enum Question<'a> {
    AgentRows(String),
    AgentStats(String),
    WorkflowRows(String),
    Analytics,
    Page,
    One(String),
    Stats,
    TimeSeries,
    Facets,
    Errors,
    Trace(&'a str),
}

/// Where everything is.
pub const BASE: &str = "/api/v1";

/// The description of all this.
const OPENAPI: &str = include_str!("openapi.json");

impl QueryApi {
    /// An API over the database; `pipeline` says how the stages are. When `shutdown` is cancelled the live streams end.
    /// Must be called within a runtime. The database may be away.
    ///
    /// # Errors
    ///
    /// When the URL of the database cannot be read.
    pub fn new(
        options: QueryOptions,
        pipeline: impl Fn() -> PipelineReport + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> Result<QueryApi, QueryError> {
        let database = Database::open(&options.url)?;
        let schema = options.schema.filter(|_| database.dialect() == Dialect::Postgres);
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let named = |name: &str| match &schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(name)),
            None => quote(name),
        };
        let inner = Inner {
            table: named(&options.table),
            beside: named("spanledger_executions"),
            hours: named("spanledger_hours"),
            shown: options.rows,
            signoz_url: options.signoz_url,
            access: Access::new(options.tokens, &options.users, options.insecure),
            pipeline: Box::new(pipeline),
            live: Live::default(),
            shutdown,
            seats: Seats::default(),
            database,
        };
        Ok(QueryApi { inner: Arc::new(inner) })
    }

    /// Asks for other credentials from now on, unless there were none, or would be none: that takes a restart.
    pub fn replace_credentials(&self, tokens: Vec<ApiToken>, users: &[(String, String)]) {
        self.inner.access.replace(tokens, users);
    }

    /// The answer to a request for a path under [`BASE`]; elsewhere is the page.
    pub async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        if !request.uri().path().starts_with(BASE) {
            return super::page::answer(request);
        }
        let mut response = match self.try_answer(request).await {
            Ok(response) => response,
            Err((error, code)) => refuse(&error, code),
        };
        self.inner.access.challenge(&mut response);
        if request.method() == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    /// Where the request leads, and with which code of its own a failure of the database is answered there.
    async fn try_answer<B>(&self, request: &Request<B>) -> Result<Response<Body>, (QueryError, Option<&'static str>)> {
        let plain = |error: QueryError| (error, None);
        let path = request.uri().path();
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = json_response(
                StatusCode::METHOD_NOT_ALLOWED,
                &json!({"success": false, "error": {"message": "use GET", "code": "METHOD_NOT_ALLOWED"}}),
            );
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(response);
        }
        let scope = self.inner.access.admit(request).map_err(plain)?;
        let route = route(path).map_err(plain)?;
        let parameters = Parameters::parse(request.uri().query()).map_err(plain)?;
        let asked = Asked {
            parameters,
            scope,
            now: Utc::now(),
        };
        let question = match route {
            Route::Question(question) => question,
            Route::Live => return self.live(asked, request.headers()).map_err(plain),
            Route::Pipeline => {
                let data = self.pipeline(asked).map_err(plain)?;
                return Ok(json_response(StatusCode::OK, &json!({"success": true, "data": data})));
            }
            Route::OpenApi => {
                let mut response = Response::new(Body::from(OPENAPI));
                json_headers(&mut response);
                return Ok(response);
            }
        };
        let seat = self.inner.seats.take().await.map_err(plain)?;
        let (answer, code) = match question {
            Question::AgentRows(agent) => (self.agent_rows(asked, agent).await, Some("FETCH_LOGS_ERROR")),
            Question::WorkflowRows(execution) => (self.workflow_rows(asked, execution).await, Some("FETCH_LOGS_ERROR")),
            Question::AgentStats(agent) => (self.agent_stats(asked, agent).await, Some("FETCH_STATS_ERROR")),
            Question::Analytics => (self.analytics(asked).await, None),
            Question::Page => (self.page(asked).await, None),
            Question::One(id) => (self.one(asked, &id).await, None),
            Question::Stats => (self.stats(asked).await, None),
            Question::TimeSeries => (self.timeseries(asked).await, None),
            Question::Facets => (self.facets(asked).await, None),
            Question::Errors => (self.errors(asked).await, None),
            Question::Trace(trace) => (self.trace(asked, trace).await, None),
        };
        let mut response = Response::new(
            answer
                .map_err(|error| (error, code))?
                .into_body(seat, &self.inner.seats),
        );
        json_headers(&mut response);
        Ok(response)
    }

    fn database(&self) -> &Database {
        &self.inner.database
    }

    fn dialect(&self) -> Dialect {
        self.inner.database.dialect()
    }

    fn table(&self) -> &str {
        &self.inner.table
    }

    fn beside(&self) -> &str {
        &self.inner.beside
    }

    fn hours(&self) -> &str {
        &self.inner.hours
    }

    fn shown(&self) -> RowsShown {
        self.inner.shown
    }

    fn signoz_url(&self) -> Option<&str> {
        self.inner.signoz_url.as_deref()
    }
}

fn route(path: &str) -> Result<Route<'_>, QueryError> {
    let unknown = QueryError::NotFound("there is no such path; see /api/v1/openapi.json");
    let Some(rest) = path.strip_prefix(BASE) else {
        return Err(unknown);
    };
    let parts: Vec<&str> = rest.split('/').skip(1).collect();
    let id = |text: &str| {
        // A `+` in a path is a plus.
        let text = parameters::percent_decode(&text.replace('+', "%2B"))?;
        if text.is_empty() {
            Err(QueryError::NotFound("the id is empty"))
        } else {
            Ok(text)
        }
    };
    let question = match parts[..] {
        ["code-exec-logs"] => Question::Page,
        ["code-exec-logs", "agent", agent] => Question::AgentRows(id(agent)?),
        ["code-exec-logs", "agent", agent, "stats"] => Question::AgentStats(id(agent)?),
        ["code-exec-logs", "workflow", execution] => Question::WorkflowRows(id(execution)?),
        ["code-agents", "analytics"] => Question::Analytics,
        ["code-exec-logs", "stats"] => Question::Stats,
        ["code-exec-logs", "timeseries"] => Question::TimeSeries,
        ["code-exec-logs", "facets"] => Question::Facets,
        ["code-exec-logs", "errors"] => Question::Errors,
        ["code-exec-logs", "live"] => return Ok(Route::Live),
        ["code-exec-logs", one] => Question::One(id(one)?),
        ["traces", trace] => Question::Trace(trace),
        ["pipeline"] => return Ok(Route::Pipeline),
        ["openapi.json"] => return Ok(Route::OpenApi),
        _ => return Err(unknown),
    };
    Ok(Route::Question(question))
}

fn refuse(error: &QueryError, code: Option<&'static str>) -> Response<Body> {
    let (status, own_code) = error.status();
    let code = code.filter(|_| error.is_of_database()).unwrap_or(own_code);
    if let QueryError::Unavailable(reason) | QueryError::TableMissing(reason) = error {
        tracing::warn!(reason, "a question could not be answered");
    }
    let body = json!({"success": false, "error": {"message": error.to_string(), "code": code}});
    let mut response = json_response(status, &body);
    if error.is_retryable() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    json_headers(&mut response);
    response
}

fn json_headers(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}
