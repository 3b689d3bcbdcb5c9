//! What a person who sets up a database wants to know of it before a
//! coordinator does. Changes nothing.

use sqlx::{Connection as _, PgConnection, PgPool};

use super::migrate::{self, MigrateError, SchemaSteps};

/// What was found of a database. Each part stands for itself, in words where
/// it is as it should be.
#[derive(Debug)]
pub struct Inspection {
    /// The version of the server.
    pub server: Result<String, MigrateError>,
    /// The version of pgvector, and whether it has still to be switched on.
    pub pgvector: Result<String, MigrateError>,
    /// How many steps of the schema are there, and how many are missing.
    pub schema: Result<SchemaSteps, MigrateError>,
    /// What the role may do.
    pub permissions: Result<String, MigrateError>,
}

/// Looks at a database. Fails when it cannot be reached.
pub async fn inspect(pool: &PgPool) -> Result<Inspection, MigrateError> {
    let mut connection = migrate::connect(pool).await?;
    let server = migrate::check_server(&mut connection).await;
    let pgvector = pgvector(&mut connection).await;
    let schema = steps(&mut connection).await;
    let permissions = permissions(&mut connection).await;
    // It is given up in any case.
    let _ = connection.close().await;
    Ok(Inspection {
        server,
        pgvector,
        schema,
        permissions,
    })
}

async fn pgvector(connection: &mut PgConnection) -> Result<String, MigrateError> {
    if migrate::find_extension(connection).await? {
        let version: String = sqlx::query_scalar(
            "-- store::inspect::pgvector
             SELECT extversion FROM pg_extension WHERE extname = 'vector'",
        )
        .fetch_one(connection)
        .await?;
        return Ok(version);
    }
    let (version, may): (String, bool) = sqlx::query_as(
        "-- store::inspect::pgvector
         SELECT e.default_version::text,
                r.rolsuper OR (v.trusted AND has_database_privilege(current_database(), 'CREATE'))
         FROM pg_available_extensions e
         JOIN pg_available_extension_versions v ON v.name = e.name AND v.version = e.default_version
         JOIN pg_roles r ON r.rolname = current_user
         WHERE e.name = 'vector'",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !may {
        let (role, database) = migrate::whoami(connection).await?;
        return Err(MigrateError::MayNotCreateExtension { role, database });
    }
    Ok(format!("{version}, switched on with the schema"))
}

async fn steps(connection: &mut PgConnection) -> Result<SchemaSteps, MigrateError> {
    let there: bool = sqlx::query_scalar(
        "-- store::inspect::steps\nSELECT to_regclass('weir.migrations') IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await?;
    let readable: bool = !there
        || sqlx::query_scalar(
            "-- store::inspect::steps\nSELECT has_table_privilege('weir.migrations', 'SELECT')",
        )
        .fetch_one(&mut *connection)
        .await?;
    if !readable {
        return Err(may_not_use(connection, "the table migrations").await?);
    }
    if there {
        migrate::steps(connection).await
    } else {
        Ok(migrate::no_steps())
    }
}

async fn permissions(connection: &mut PgConnection) -> Result<String, MigrateError> {
    let (schema, may_create): (bool, bool) = sqlx::query_as(
        "-- store::inspect::permissions
         SELECT to_regnamespace('weir') IS NOT NULL, has_database_privilege(current_database(), 'CREATE')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (role, database) = migrate::whoami(connection).await?;
    if !schema {
        return if may_create {
            Ok(format!("{role} may create the schema weir in {database}"))
        } else {
            Err(MigrateError::MayNotCreateSchema { role, database })
        };
    }
    // The name would be looked up in a schema that may not be used; its number is not.
    let denied: Option<String> = sqlx::query_scalar(
        "-- store::inspect::permissions
         SELECT CASE
             WHEN NOT has_schema_privilege(n.oid, 'USAGE') THEN 'the schema itself'
             ELSE (SELECT 'the table ' || min(c.relname) FROM pg_class c
                    WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
                      AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                           AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')))
         END FROM pg_namespace n WHERE n.nspname = 'weir'",
    )
    .fetch_one(&mut *connection)
    .await?;
    match denied {
        Some(what) => Err(may_not_use(connection, &what).await?),
        None => Ok(format!(
            "{role} may read and write the schema weir in {database}"
        )),
    }
}

async fn may_not_use(
    connection: &mut PgConnection,
    what: &str,
) -> Result<MigrateError, sqlx::Error> {
    let (role, _) = migrate::whoami(connection).await?;
    let what = what.to_owned();
    Ok(MigrateError::MayNotUseSchema { role, what })
}
