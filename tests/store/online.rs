//! What a step of the schema may do beside a Weir that works: what holds no lock
//! of a large table for longer than a moment, and can be done again where it was
//! cut off. A statement that is not known to is refused, with what to write
//! instead.

use std::collections::BTreeSet;

use weir_coordinator::store::migrate::{migrator, sql::statements};

/// The last step that was written before this was looked at.
const BEFORE: i64 = 14;

/// Tables that stay small, whatever is embedded.
const SMALL: [&str; 3] = ["WEIR.MODELS", "WEIR.PROMPTS", "WEIR.SAMPLES"];

/// Settings of a column that are no more than an entry of the catalogue.
const COLUMN_SETTINGS: [&[&str]; 6] = [
    &["SET", "DEFAULT"],
    &["DROP", "DEFAULT"],
    &["DROP", "NOT", "NULL"],
    &["SET", "STATISTICS"],
    &["SET", "STORAGE"],
    &["SET", "COMPRESSION"],
];

/// Refuses a step, or a statement of it, with what to do instead.
type Verdict = Result<(), &'static str>;

/// A step as far as it was looked at.
#[derive(Debug, Default)]
struct Step {
    /// Whether each statement stands for itself.
    alone: bool,
    /// Tables that it made: nobody else knows them.
    own: BTreeSet<String>,
    /// Others that it has locked for a moment, until its transaction ends.
    locked: BTreeSet<String>,
}

impl Step {
    /// Whether a step may be applied beside a Weir that works.
    fn check(file: &str) -> Result<(), String> {
        let mut step = Self {
            alone: file.starts_with("-- no-transaction"),
            ..Self::default()
        };
        for statement in statements(file) {
            let words = words(&statement);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let verdict = step.statement(&words);
            verdict.map_err(|instead| format!("{statement}\n    {instead}"))?;
        }
        Ok(())
    }

    fn statement(&mut self, words: &[&str]) -> Verdict {
        match words {
            ["COMMENT", "ON", ..] => Ok(()),
            ["CREATE", "TABLE" | "UNLOGGED", rest @ ..] => self.create_table(rest),
            ["CREATE", "UNIQUE", "INDEX", rest @ ..] | ["CREATE", "INDEX", rest @ ..] => {
                self.create_index(rest)
            }
            ["DROP", "INDEX", rest @ ..] => self.drop_index(rest),
            ["ALTER", "TABLE", table, rest @ ..] => self.alter_table(table, rest),
            ["INSERT", "INTO", table, ..]
            | ["UPDATE", table, ..]
            | ["DELETE", "FROM", table, ..] => self.write(table, words),
            ["DO", body] if self.alone => in_steps(body),
            ["DO", ..] => Err(
                "write it into a file that begins with `-- no-transaction`, in steps that COMMIT",
            ),
            _ => Err(
                "is not known to be harmless: write it another way, or prove that it locks nothing for long and add it here",
            ),
        }
    }

    fn create_table(&mut self, rest: &[&str]) -> Verdict {
        let rest = rest.strip_prefix(&["TABLE"]).unwrap_or(rest);
        let exists = ["IF", "NOT", "EXISTS"];
        let (rest, again) = match rest.strip_prefix(&exists) {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let [table, "(", columns @ ..] = rest else {
            return Err("name its columns, and fill it in steps");
        };
        if columns.contains(&"REFERENCES") {
            return Err(
                "a foreign key locks the other table: check it in the statements that write",
            );
        }
        if self.alone && !again {
            return Err("say IF NOT EXISTS: without a transaction it may run again");
        }
        self.own.insert((*table).to_owned());
        Ok(())
    }

    fn create_index(&self, rest: &[&str]) -> Verdict {
        let on = rest.iter().position(|word| *word == "ON");
        let table = on.and_then(|on| rest.get(on + 1)).copied().unwrap_or("");
        match rest {
            ["CONCURRENTLY", ..] if !self.alone => {
                Err("write it into a file of its own that begins with `-- no-transaction`")
            }
            ["CONCURRENTLY", "IF", "NOT", "EXISTS", ..] => Ok(()),
            ["CONCURRENTLY", ..] => {
                Err("say IF NOT EXISTS: without a transaction it may run again")
            }
            _ if self.own.contains(table) && !self.alone => Ok(()),
            _ => Err(
                "keeps writers waiting while it is built: CREATE INDEX CONCURRENTLY IF NOT EXISTS, in a file that \
                 begins with `-- no-transaction`",
            ),
        }
    }

    fn drop_index(&self, rest: &[&str]) -> Verdict {
        match rest {
            ["CONCURRENTLY", "IF", "EXISTS", _] if self.alone => Ok(()),
            _ => Err(
                "waits for readers, and others behind it: DROP INDEX CONCURRENTLY IF EXISTS, in a file that begins \
                 with `-- no-transaction`",
            ),
        }
    }

    fn alter_table(&mut self, table: &str, rest: &[&str]) -> Verdict {
        if self.own.contains(table) {
            return Ok(());
        }
        for action in actions(rest) {
            self.alteration(action)?;
        }
        self.locked.insert(table.to_owned());
        if self.locked.len() > 1 && !self.alone {
            return Err(
                "holds the lock of another table while it waits for this one: write a file for each",
            );
        }
        Ok(())
    }

    fn alteration(&self, action: &[&str]) -> Verdict {
        match action {
            ["ADD", "COLUMN", "IF", "NOT", "EXISTS", column @ ..] => add_column(column),
            ["ADD", "COLUMN", ..] if self.alone => {
                Err("say IF NOT EXISTS: without a transaction it may run again")
            }
            ["ADD", "COLUMN", column @ ..] => add_column(column),
            ["ADD", "CONSTRAINT", _, "CHECK", .., "NOT", "VALID"] | ["DROP", "CONSTRAINT", _]
                if !self.alone =>
            {
                Ok(())
            }
            ["ADD", "CONSTRAINT", _, "CHECK", .., "NOT", "VALID"] => {
                Err("write it into a file without `-- no-transaction`: it cannot be added again")
            }
            ["ADD", ..] => Err(
                "reads the whole table under its lock: ADD CONSTRAINT … CHECK … NOT VALID, and in another file that \
                 begins with `-- no-transaction` VALIDATE CONSTRAINT; a unique one as an index, CONCURRENTLY",
            ),
            ["VALIDATE", "CONSTRAINT", _] if self.alone => Ok(()),
            ["VALIDATE", ..] => Err(
                "write it into a file that begins with `-- no-transaction`, after the one that adds it",
            ),
            ["DROP", "CONSTRAINT", "IF", "EXISTS", _] | ["SET" | "RESET", "(", ..] => Ok(()),
            ["DROP", "CONSTRAINT", _] => {
                Err("say IF EXISTS: without a transaction it may run again")
            }
            ["ALTER", "COLUMN", _, "SET", "NOT", "NULL"] => Err(
                "reads the whole table under its lock: ADD CONSTRAINT … CHECK (… IS NOT NULL) NOT VALID, and VALIDATE it \
                 in another file",
            ),
            ["ALTER", "COLUMN", _, setting @ ..]
                if COLUMN_SETTINGS
                    .iter()
                    .any(|known| setting.starts_with(known)) =>
            {
                Ok(())
            }
            ["ALTER", ..] => Err(
                "may write the whole table anew: add another column, fill it in steps, use it instead",
            ),
            ["DROP" | "RENAME", ..] => Err(
                "replicas of the version before still use it: leave it until no such replica can run",
            ),
            _ => Err(
                "is not known to be harmless: write it another way, or prove that it locks nothing for long",
            ),
        }
    }

    fn write(&self, table: &str, words: &[&str]) -> Verdict {
        let small = SMALL.contains(&table) || self.own.contains(table);
        let reads = words.contains(&"SELECT") || words.contains(&"USING");
        match words[0] {
            _ if !small => Err(
                "writes as many rows as there are in one transaction: leave it to a task of maintenance, or do it in \
                 steps that COMMIT: DO, in a file that begins with `-- no-transaction`",
            ),
            _ if reads => Err("reads other tables for as long as it takes: fill it in steps"),
            "INSERT" if self.alone && !words.contains(&"CONFLICT") => {
                Err("say ON CONFLICT: without a transaction it may run again")
            }
            _ => Ok(()),
        }
    }
}

fn add_column(column: &[&str]) -> Verdict {
    let has = |word| column.contains(&word);
    if ["GENERATED", "UNIQUE", "PRIMARY", "REFERENCES", "CHECK"]
        .into_iter()
        .any(has)
    {
        return Err(
            "writes or reads the whole table under its lock: add the column alone, and the rest in steps of its own",
        );
    }
    let default = column.iter().position(|word| *word == "DEFAULT");
    let Some(default) = default else {
        return if has("NOT") {
            Err("the rows that are there need a value: say DEFAULT")
        } else {
            Ok(())
        };
    };
    let rest = &column[default + 1..];
    let end = rest
        .iter()
        .position(|word| ["NOT", "NULL", "COLLATE"].contains(word));
    match &rest[..end.unwrap_or(rest.len())] {
        [value] if is_constant(value) => Ok(()),
        ["-", value] if is_constant(value) => Ok(()),
        _ => Err(
            "the default is no constant, and would be worked out for each row: add it without, and SET DEFAULT",
        ),
    }
}

fn is_constant(word: &str) -> bool {
    matches!(word, "TRUE" | "FALSE" | "NULL")
        || word.starts_with('\'')
        || word.starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a block does its work in steps, each a transaction of its own.
fn in_steps(body: &str) -> Verdict {
    let body = body.to_uppercase();
    if body.contains("LIMIT") && body.contains("COMMIT;") {
        Ok(())
    } else {
        Err("do it in steps: so many rows by LIMIT, then COMMIT, until none is left")
    }
}

/// The words of a statement, in capitals; what is quoted is one of them.
fn words(statement: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = statement.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |char: char| char.is_alphanumeric() || "_.\"".contains(char);
        let length = match first {
            '\'' => rest[1..].find('\'').map_or(rest.len(), |end| end + 2),
            '$' => rest.len(),
            _ if is_word(first) => rest.find(|char| !is_word(char)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        words.push(word.to_uppercase());
        rest = after.trim_start();
    }
    words
}

/// What an ALTER TABLE does, one thing after the other.
fn actions<'w>(words: &'w [&'w str]) -> Vec<&'w [&'w str]> {
    let mut depth = 0;
    let between = |word: &&str| {
        match *word {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        depth == 0 && *word == ","
    };
    words.split(between).collect()
}

#[test]
fn no_step_of_the_schema_keeps_others_waiting() {
    let mut refused = Vec::new();
    for step in migrator().iter().filter(|step| step.version > BEFORE) {
        if let Err(why) = Step::check(step.sql.as_str()) {
            refused.push(format!("migrations/{:04}: {why}", step.version));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn what_locks_nothing_for_long_is_let_through() {
    for file in [
        "CREATE TABLE weir.a (b bigint NOT NULL, CONSTRAINT a_pkey PRIMARY KEY (b)); CREATE INDEX a_b ON weir.a (b);
         ALTER TABLE weir.a ADD CONSTRAINT a_b_positive CHECK (b > 0); INSERT INTO weir.a (b) VALUES (1);
         COMMENT ON TABLE weir.a IS 'It; has a comment.'",
        "ALTER TABLE weir.jobs ADD COLUMN changes integer NOT NULL DEFAULT 0, ADD COLUMN said text COLLATE \"C\",
             ADD COLUMN less smallint DEFAULT -1, ADD CONSTRAINT jobs_changes CHECK (changes >= 0) NOT VALID,
             SET (fillfactor = 70), ALTER COLUMN changes DROP DEFAULT, DROP CONSTRAINT jobs_settled",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_open ON weir.jobs (source_id, (state IN ('a', 'b')));
         COMMENT ON INDEX weir.jobs_open IS 'Of jobs.'; DROP INDEX CONCURRENTLY IF EXISTS weir.jobs_unsettled;",
        "-- no-transaction\nALTER TABLE weir.jobs VALIDATE CONSTRAINT jobs_changes;
         ALTER TABLE weir.jobs ADD COLUMN IF NOT EXISTS b text",
        "UPDATE weir.models SET dimension = 3 WHERE dimension IS NULL; DELETE FROM weir.samples",
        "-- no-transaction\nDO $$ BEGIN LOOP
             DELETE FROM weir.chunks WHERE ctid IN (SELECT ctid FROM weir.chunks WHERE false LIMIT 1000);
             EXIT WHEN NOT FOUND; COMMIT; END LOOP; END $$",
    ] {
        assert_eq!(Step::check(file), Ok(()), "{file}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of what is refused")]
fn what_would_keep_others_waiting_is_refused_with_what_to_do_instead() {
    const ALONE: &str = "`-- no-transaction`";
    for (file, instead) in [
        (
            "CREATE INDEX jobs_a ON weir.jobs (a)",
            "CONCURRENTLY IF NOT EXISTS",
        ),
        (
            "CREATE UNIQUE INDEX jobs_a ON weir.jobs (a)",
            "CONCURRENTLY",
        ),
        (
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS a ON weir.jobs (a)",
            ALONE,
        ),
        (
            "-- no-transaction\nCREATE INDEX CONCURRENTLY a ON weir.jobs (a)",
            "IF NOT EXISTS",
        ),
        ("DROP INDEX weir.jobs_claim", "DROP INDEX CONCURRENTLY"),
        ("DROP INDEX CONCURRENTLY IF EXISTS weir.jobs_claim", ALONE),
        ("REINDEX TABLE weir.jobs", "not known"),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a integer NOT NULL",
            "say DEFAULT",
        ),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a timestamptz DEFAULT clock_timestamp()",
            "no constant",
        ),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a text DEFAULT 'x' || 'y'",
            "no constant",
        ),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a int DEFAULT 0 CHECK (a >= 0)",
            "column alone",
        ),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a bigint GENERATED ALWAYS AS IDENTITY",
            "column alone",
        ),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a int, ADD CONSTRAINT b CHECK (a > 0)",
            "NOT VALID",
        ),
        (
            "ALTER TABLE weir.jobs ADD CONSTRAINT b UNIQUE (a)",
            "as an index",
        ),
        ("ALTER TABLE weir.jobs ADD PRIMARY KEY (a)", "as an index"),
        ("ALTER TABLE weir.jobs VALIDATE CONSTRAINT b", ALONE),
        (
            "ALTER TABLE weir.jobs ALTER COLUMN a SET NOT NULL",
            "NOT VALID",
        ),
        (
            "ALTER TABLE weir.jobs ALTER COLUMN a TYPE bigint",
            "another column",
        ),
        ("ALTER TABLE weir.jobs DROP COLUMN a", "version before"),
        ("ALTER TABLE weir.jobs RENAME TO tasks", "version before"),
        ("ALTER TABLE weir.jobs SET TABLESPACE fast", "not known"),
        (
            "ALTER TABLE weir.jobs ENABLE ROW LEVEL SECURITY",
            "not known",
        ),
        (
            "-- no-transaction\nALTER TABLE weir.jobs ADD COLUMN a int",
            "IF NOT EXISTS",
        ),
        (
            "-- no-transaction\nALTER TABLE weir.jobs ADD CONSTRAINT b CHECK (a > 0) NOT VALID",
            "without",
        ),
        (
            "-- no-transaction\nALTER TABLE weir.jobs DROP CONSTRAINT a",
            "IF EXISTS",
        ),
        (
            "ALTER TABLE weir.jobs ADD COLUMN a int; ALTER TABLE weir.chunks ADD COLUMN a int",
            "a file for each",
        ),
        (
            "CREATE TABLE weir.a (b bigint REFERENCES weir.jobs (id))",
            "foreign key",
        ),
        ("CREATE TABLE weir.a AS SELECT * FROM weir.jobs", "in steps"),
        (
            "CREATE TABLE weir.a (b int); INSERT INTO weir.a SELECT id FROM weir.jobs",
            "in steps",
        ),
        ("UPDATE weir.chunks SET text = text", "in steps"),
        ("DELETE FROM weir.jobs WHERE settled", "maintenance"),
        (
            "DO $$ BEGIN DELETE FROM weir.jobs LIMIT 1; COMMIT; END $$",
            ALONE,
        ),
        (
            "-- no-transaction\nDO $$ BEGIN DELETE FROM weir.jobs; END $$",
            "LIMIT",
        ),
        ("DROP TABLE weir.samples", "not known"),
        ("LOCK TABLE weir.jobs", "not known"),
        ("SELECT 1", "not known"),
        ("VACUUM FULL weir.jobs", "not known"),
        ("CLUSTER weir.jobs", "not known"),
        (
            "CREATE TRIGGER a AFTER UPDATE ON weir.jobs EXECUTE FUNCTION b()",
            "not known",
        ),
        // What hides behind a comment or a string.
        (
            "COMMENT ON TABLE weir.jobs IS 'a'/* */; DROP INDEX weir.jobs_claim",
            "CONCURRENTLY",
        ),
        (
            "/* */ create /* */ index a on weir.jobs (b)",
            "CONCURRENTLY",
        ),
    ] {
        let refused = Step::check(file).expect_err(file);
        assert!(refused.contains(instead), "{refused}");
    }
}
