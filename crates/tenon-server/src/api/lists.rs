//! The lists of all records: one handler, told which.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::app::App;
use crate::extract::Query;
use crate::problem::Problem;
use crate::query::{self, ListQuery, Page};
use crate::view::{
    BaseModelView, CompleteModelView, CustomizedModelView, EnvironmentView, Job, LiveModelView,
};

/// A handler that answers with a part of a list: its path, its part of the document, and which list it is.
macro_rules! list {
    ($name:ident, $path:tt, $tag:tt, $id:tt, $summary:tt, $item:ident) => {
        #[doc = $summary]
        #[utoipa::path(get, path = $path, tag = $tag, operation_id = $id, params(ListQuery),
                            responses((status = 200, description = "A part of the list", body = Page<$item>),
                                      (status = 304, description = "As it was (If-None-Match)")))]
        pub(crate) async fn $name(
            State(app): State<App>,
            Query(query): Query<ListQuery>,
            headers: HeaderMap,
        ) -> Result<Response, Problem> {
            query::answer(&app.lists.now().$name, app.events.epoch(), &query, &headers)
        }
    };
}

list!(
    complete,
    "/complete-models",
    "Complete Models",
    "list_complete_models",
    "The Complete Models.",
    CompleteModelView
);
list!(
    customized,
    "/customized-models",
    "Customized Models",
    "list_customized_models",
    "The Customized Models.",
    CustomizedModelView
);
list!(base, "/base-models", "Base Models", "list_base_models", "The Base Models.", BaseModelView);
list!(
    environments,
    "/environments",
    "Deployment Environments",
    "list_environments",
    "The Deployment Environments.",
    EnvironmentView
);
list!(live, "/live-models", "Live Models", "list_live_models", "The Live Models.", LiveModelView);
list!(jobs, "/jobs", "Jobs", "list_jobs", "The jobs.", Job);
