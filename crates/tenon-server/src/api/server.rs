//! The server itself.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::problem::{Code, Problem};

/// What the server is and what it may do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct About {
    /// Its version.
    version: &'static str,
    /// Directories under which models may be registered.
    allow_paths: Vec<String>,
    /// Whether it works on jobs itself.
    works: bool,
    /// Quantizations that a deployment may have.
    quantizations: [&'static str; 4],
}

/// What the server is and what it may do.
#[utoipa::path(get, path = "/server", tag = "Server", operation_id = "about",
    responses((status = 200, description = "What it is", body = About)))]
pub(crate) async fn about(State(app): State<App>) -> Json<About> {
    Json(About {
        version: tenon::VERSION,
        allow_paths: app.roots.all().iter().map(|root| root.display().to_string()).collect(),
        works: app.options.work,
        quantizations: ["no_quantization", "q8_0", "q4_K_M", "q4_K_S"],
    })
}

/// Whether the server takes requests.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Whether the server takes requests; for load balancers.
#[utoipa::path(get, path = "/health", tag = "Server", operation_id = "health",
    responses((status = 200, description = "It does", body = Health)))]
pub(crate) async fn health(State(app): State<App>) -> Result<Json<Health>, Problem> {
    match app.is_stopping() {
        false => Ok(Json(Health { status: "ok" })),
        true => Err(Problem::new(Code::Stopping, "the server is stopping")),
    }
}
