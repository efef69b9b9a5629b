//! `spark secrets`

use clap::{Args, Subcommand};

use crate::cli::output::{Column, column};
use crate::cli::report::{self, Status};
use crate::cli::{Ctx, output};
use crate::domain::name::SparkRef;
use crate::domain::secret::{Delivery, Key, Named, Reference};
use crate::error::{Error, Result};
use crate::ops::secrets::{Checked, Scope, ask_value};

/// References to secrets, delivered when a spark starts
///
/// A secret belongs to the project here, and so to all of its sparks, or to one spark. What is recorded is where its value
/// is: op://VAULT/ITEM/FIELD, age://NAME, env://NAME, file:///PATH, cmd://NAME or pass://PATH.
#[derive(Debug, Args)]
pub(crate) struct SecretsArgs {
    #[command(subcommand)]
    action: Action,
}

impl SecretsArgs {
    /// Whether it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.action, Action::List { .. } | Action::Check { .. })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Set a secret by its reference, or its value from standard input
    ///
    /// At a terminal the value is asked for, a line that is not shown. A value is encrypted into the built-in store. A spark that runs gets it by `spark secrets refresh`.
    Set {
        /// Only this spark's, and over its project's [default: the project's]
        #[arg(long, value_name = "SPARK")]
        spark: Option<SparkRef>,
        /// What it is called inside; `:file` or `:env` for only one of the two
        #[arg(value_name = "KEY")]
        key: Named,
        /// Where its value is
        #[arg(value_name = "REF")]
        reference: Option<String>,
    },
    /// List secrets: names and references, never values
    #[command(visible_alias = "ls")]
    List {
        /// What this spark gets [default: what the project's sparks get]
        #[arg(long, value_name = "SPARK")]
        spark: Option<SparkRef>,
    },
    /// Delete secrets, and their values in the built-in store if nothing else refers to them
    #[command(visible_alias = "rm")]
    Delete {
        /// Of this spark [default: of the project]
        #[arg(long, value_name = "SPARK")]
        spark: Option<SparkRef>,
        /// Secrets to delete
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<Key>,
    },
    /// Check that every value can be had
    Check {
        /// What this spark gets [default: what the project's sparks get]
        #[arg(long, value_name = "SPARK")]
        spark: Option<SparkRef>,
    },
    /// Give your key of the built-in store a passphrase, another one, or none
    ///
    /// It is asked for at the terminal, and whenever a value of the store is used, unless SPARK_AGE_PASSPHRASE holds it.
    Passphrase,
    /// Fetch the values for running sparks anew
    ///
    /// Files are replaced one by one, each at once; the next command sees the new variables.
    Refresh {
        /// Running sparks
        #[arg(required = true, value_name = "SPARK")]
        sparks: Vec<SparkRef>,
    },
}

pub(crate) fn secrets(ctx: &Ctx, args: SecretsArgs) -> Result<Status> {
    match args.action {
        Action::Set { spark, key, reference } => set(ctx, spark.as_ref(), &key, reference.as_deref()),
        Action::List { spark } => list(ctx, spark.as_ref()),
        Action::Delete { spark, keys } => delete(ctx, spark.as_ref(), &keys),
        Action::Check { spark } => check(ctx, spark.as_ref()),
        Action::Passphrase => passphrase(ctx),
        Action::Refresh { sparks } => refresh(ctx, &sparks),
    }
}

fn set(ctx: &Ctx, spark: Option<&SparkRef>, named: &Named, reference: Option<&str>) -> Result<Status> {
    // Not repeated if it is none: it may be a value.
    let reference = reference.map(str::parse::<Reference>).transpose().map_err(|why| Error::Usage {
        message: format!("the reference of `{}`: {why}", named.key),
        hint: Some(format!("a value is read from standard input: `spark secrets set {} < FILE`", named.key)),
    })?;
    let progress = ctx.progress(false);
    let sparks = match spark {
        Some(spark) => ctx.having_spark(spark)?,
        None => ctx.sparks(&progress)?,
    };
    let scope = sparks.secrets_scope(spark)?;
    let secret = match reference.is_none() && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        true => sparks.secret_put(&scope, named, None, &mut ask_value(&named.key)?.bytes())?,
        false => sparks.secret_put(&scope, named, reference, &mut std::io::stdin().lock())?,
    };
    if ctx.json {
        output::print_json(&serde_json::json!({ "key": named.key, "ref": secret.reference }))?;
    }
    if let Scope::Spark(spark) = &scope {
        ctx.say(format_args!("a running spark gets it by `spark secrets refresh {spark}`"));
    }
    Ok(0)
}

const COLUMNS: [Column; 4] =
    [column("KEY", "key"), column("REFERENCE", "ref"), column("AS", "as"), column("OF", "of")];

fn list(ctx: &Ctx, spark: Option<&SparkRef>) -> Result<Status> {
    let list = match opened(ctx, spark)? {
        Some(sparks) => sparks.secret_list(&sparks.secrets_scope(spark)?)?,
        None => Vec::new(),
    };
    output::print_rows(ctx.json, &COLUMNS, &list)?;
    Ok(0)
}

fn opened(ctx: &Ctx, spark: Option<&SparkRef>) -> Result<Option<crate::ops::Sparks>> {
    match spark {
        Some(spark) => ctx.having_spark(spark).map(Some),
        None => ctx.open(),
    }
}

fn delete(ctx: &Ctx, spark: Option<&SparkRef>, keys: &[Key]) -> Result<Status> {
    let sparks = opened(ctx, spark)?.ok_or_else(super::pool::none)?;
    let scope = sparks.secrets_scope(spark)?;
    Ok(ctx.each(keys, |key| sparks.secret_delete(&scope, key)))
}

/// One secret that was checked, as it is printed.
#[derive(Debug, serde::Serialize)]
struct Row<'a> {
    key: &'a Key,
    #[serde(rename = "ref")]
    reference: &'a Reference,
    #[serde(rename = "as")]
    delivery: Delivery,
    of: &'a str,
    ok: bool,
    error: Option<String>,
    hint: Option<String>,
}

impl Row<'_> {
    fn shown(&self) -> Shown<'_> {
        Shown { key: self.key, reference: self.reference, said: if self.ok { "yes" } else { "no" } }
    }

    fn of(checked: &Checked) -> Row<'_> {
        let (secret, error) = (&checked.secret, checked.result.as_ref().err());
        Row {
            key: &secret.key,
            reference: &secret.reference,
            delivery: secret.delivery,
            of: secret.of,
            ok: error.is_none(),
            error: error.map(ToString::to_string),
            hint: error.and_then(Error::hint),
        }
    }
}

#[derive(Debug, serde::Serialize)]
struct Shown<'a> {
    key: &'a Key,
    #[serde(rename = "ref")]
    reference: &'a Reference,
    said: &'static str,
}

fn check(ctx: &Ctx, spark: Option<&SparkRef>) -> Result<Status> {
    let checked = match opened(ctx, spark)? {
        Some(sparks) => sparks.secret_check(&sparks.secrets_scope(spark)?)?,
        None => Vec::new(),
    };
    let rows: Vec<Row<'_>> = checked.iter().map(Row::of).collect();
    let columns = [column("KEY", "key"), column("REFERENCE", "ref"), column("OK", "said")];
    match ctx.json {
        true => output::print_json(&rows)?,
        // A cell that is empty would look forgotten here.
        false => output::print_rows(false, &columns, &rows.iter().map(Row::shown).collect::<Vec<_>>())?,
    }
    let mut status = 0;
    for failed in checked.iter().filter_map(|c| c.result.as_ref().err()) {
        status = report::FAILED;
        if !ctx.json {
            report::error(failed, false);
        }
    }
    Ok(status)
}

fn passphrase(ctx: &Ctx) -> Result<Status> {
    let (identity, encrypted) = ctx.sparks(&ctx.progress(false))?.secret_passphrase()?;
    if ctx.json {
        output::print_json(&serde_json::json!({ "identity": identity, "encrypted": encrypted }))?;
    }
    let which = if encrypted { "a" } else { "no" };
    ctx.say(format_args!("{} has {which} passphrase", identity.display()));
    Ok(0)
}

fn refresh(ctx: &Ctx, names: &[SparkRef]) -> Result<Status> {
    let mut done = Vec::new();
    let status = ctx.each(names, |name| {
        let refreshed = ctx.having_spark(name)?.secret_refresh(name)?;
        if !refreshed.running {
            ctx.warn(format_args!("`{name}` does not run: it gets them when it starts"));
        }
        done.push(refreshed);
        Ok(())
    });
    if ctx.json {
        output::print_json(&done)?;
    }
    Ok(status)
}
