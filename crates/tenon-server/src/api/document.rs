//! The OpenAPI document: what the handlers say, and what holds for all of them.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    Components, ContactBuilder, Content, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use crate::problem::ProblemBody;

/// What is said before the operations.
pub(crate) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Tenon")
        .version(tenon::VERSION)
        .description(Some(
            "Joins trained adapters with their Base Models into Complete Models, and deploys these.\n\n\
             Every problem is a `Problem` whose `code` stays the same from version to version. Requests that start work \
             take an `Idempotency-Key`: sent again with the same key, they answer as the first time.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .contact(Some(ContactBuilder::new().name(Some("Tenon")).build()))
        .build();
    OpenApiBuilder::new().info(info).build()
}

/// Answers that the layers around the handlers give, whatever the operation.
const EVERYWHERE: [(&str, &str); 7] = [
    ("400", "The request cannot be read"),
    ("401", "A token is needed, and this is none"),
    ("403", "The request comes from another site, or names what it may not"),
    ("408", "The request took too long"),
    ("421", "The server is not called as the request has it"),
    ("429", "Too many wrong tokens from this address"),
    ("503", "The server is busy or stopping"),
];
/// Answers to what has a body.
const WITH_BODY: [(&str, &str); 3] = [
    ("413", "The body is too large"),
    ("415", "The body is not JSON"),
    ("422", "The body or what it names is wrong"),
];

/// Adds what holds for all operations.
pub(crate) fn complete(document: &mut OpenApi, prefix: &str) {
    let paths = std::mem::take(&mut document.paths.paths);
    for (path, mut item) in paths {
        let named = path.contains('{');
        let is_open = path.starts_with("/session") || path.starts_with("/health");
        for operation in
            [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
        {
            let with_body = operation.request_body.is_some();
            for (status, description) in EVERYWHERE {
                answer(operation, status, description);
            }
            if with_body {
                for (status, description) in WITH_BODY {
                    answer(operation, status, description);
                }
            }
            if named {
                answer(operation, "404", "There is no such thing");
            }
            answer(operation, "500", "The server failed");
            problems(operation);
            if !is_open {
                operation.security = Some(vec![
                    SecurityRequirement::default(),
                    SecurityRequirement::new::<_, [&str; 0], &str>("token", []),
                    SecurityRequirement::new::<_, [&str; 0], &str>("session", []),
                ]);
            }
        }
        document.paths.paths.insert(format!("{prefix}{path}"), item);
    }
    let components = document.components.get_or_insert_with(Components::new);
    let mut schemas = vec![];
    ProblemBody::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components.schemas.insert(ProblemBody::name().into(), ProblemBody::schema());
    components.add_security_scheme(
        "token",
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
    );
    components.add_security_scheme(
        "session",
        SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("tenon_session"))),
    );
}

/// Adds an answer that the operation does not tell of itself.
fn answer(operation: &mut Operation, status: &str, description: &str) {
    let new = || RefOr::T(ResponseBuilder::new().description(description).build());
    operation.responses.responses.entry(status.into()).or_insert_with(new);
}

/// All that is refused is a problem.
fn problems(operation: &mut Operation) {
    let refused = operation.responses.responses.iter_mut().filter(|(status, _)| status.as_str() >= "400");
    for (_, response) in refused {
        if let RefOr::T(response) = response {
            let problem = RefOr::Ref(Ref::from_schema_name(ProblemBody::name()));
            response.content.insert("application/problem+json".into(), RefOr::T(Content::new(Some(problem))));
        }
    }
}
