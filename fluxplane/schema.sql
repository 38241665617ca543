-- The control plane's own tables. Each part runs once, in order, in one transaction; `catalogue.migrate` splits at the
-- lines that begin with "-- version". {service} is the login the service uses, {audit} the owner of the audit.

-- version 1
CREATE TABLE users (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name        text NOT NULL UNIQUE CHECK (name <> ''),
    plan        text NOT NULL DEFAULT 'hobby' CHECK (plan IN ('hobby', 'pro')),
    default_mode text NOT NULL DEFAULT 'v2_shared' CHECK (default_mode IN ('v1_dedicated', 'v2_shared')),
    cli_role    text NOT NULL DEFAULT 'operator' CHECK (cli_role IN ('admin', 'operator')),
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tokens (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- SHA-256 (hex) of the whole token, which nobody keeps.
    sha256       text NOT NULL UNIQUE CHECK (sha256 ~ '^[a-f0-9]{64}$'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at   timestamptz
);

CREATE TABLE projects (
    id             uuid PRIMARY KEY,
    -- The first 12 hex digits of the id name a v2 tenant's schema and roles: two projects may not share them.
    short_id       text NOT NULL UNIQUE CHECK (short_id ~ '^[a-f0-9]{12}$'),
    user_id        uuid NOT NULL REFERENCES users,
    slug           text NOT NULL CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
    hash           text NOT NULL CHECK (hash ~ '^[a-f0-9]{7}$'),
    mode           text NOT NULL CHECK (mode IN ('v1_dedicated', 'v2_shared')),
    api_schema     text NOT NULL CHECK (api_schema ~ '^[A-Za-z_][A-Za-z0-9_]{0,62}$'),
    lifecycle      text NOT NULL DEFAULT 'active' CHECK (lifecycle IN ('active', 'dormant', 'archived', 'deleting')),
    description    text,
    brief          text,
    -- v1: where the SSH host finds the Postgres, how the plane itself reaches it (if by URL), and its sealed password.
    internal_host  text,
    internal_port  integer CHECK (internal_port BETWEEN 1 AND 65535),
    container      text,
    reached_host   text,
    reached_port   integer CHECK (reached_port BETWEEN 1 AND 65535),
    sealed_password bytea,
    sealed_jwt_secret bytea,
    created_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, hash),
    UNIQUE (user_id, slug)
);

-- One row per grant: written before its role exists, and left until the role is gone.
CREATE TABLE grants (
    grant_id     text PRIMARY KEY CHECK (grant_id ~ '^[a-f0-9]{32}$'),
    project_id   uuid REFERENCES projects ON DELETE SET NULL,
    user_id      uuid REFERENCES users ON DELETE SET NULL,
    token_id     uuid,
    username     text UNIQUE,
    access       text CHECK (access IN ('readonly', 'readwrite')),
    state        text NOT NULL CHECK (state IN ('minting', 'live', 'ending', 'ended', 'tombstone')),
    -- The password is HMAC(key, grant_id, nonce) and stands nowhere.
    nonce        bytea,
    ttl_s        integer,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    max_expires_at timestamptz NOT NULL,
    -- When somebody should look at the row next; nobody while null.
    due_at       timestamptz,
    ended_at     timestamptz,
    end_reason   text,
    attempts     integer NOT NULL DEFAULT 0,
    last_error   text
);
CREATE INDEX grants_due ON grants (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX grants_of_project ON grants (project_id, created_at DESC);
CREATE INDEX grants_of_user ON grants (user_id) WHERE state IN ('minting', 'live', 'ending');

CREATE TABLE activity (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    user_id    uuid,
    kind       text NOT NULL,
    summary    text NOT NULL,
    metadata   jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX activity_of_project ON activity (project_id, created_at DESC);

-- How often a bucket was used in one window of 60 s: shared by every replica, and worth nothing after a crash.
CREATE UNLOGGED TABLE rates (
    bucket text NOT NULL,
    tier   text NOT NULL,
    minute bigint NOT NULL,
    used   integer NOT NULL,
    PRIMARY KEY (bucket, tier, minute)
);

-- Append-only by privilege: the service may read it and call `record`, and owns neither. No foreign keys: it survives
-- the deletion of project and user. No free-form column but `reason`, which the actor writes.
CREATE TABLE audit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    event      text NOT NULL CHECK (event ~ '^[a-z_]{1,40}$'),
    outcome    text NOT NULL CHECK (outcome IN ('intent', 'ok', 'refused', 'failed')),
    hash       text,
    project_id uuid,
    mode       text,
    access     text,
    actor_id   uuid,
    actor      text,
    token_id   uuid,
    source_address text,
    reason     text CHECK (length(reason) <= 500),
    request_id uuid,
    grant_id   text,
    username   text,
    ttl_seconds integer,
    expires_at timestamptz,
    bytes_up   bigint,
    bytes_down bigint
);
CREATE INDEX audit_of_actor ON audit (actor_id, id DESC);
CREATE INDEX audit_of_project ON audit (project_id, id DESC);

CREATE FUNCTION record(
    event text, outcome text, hash text, project_id uuid, mode text, access text, actor_id uuid, actor text,
    token_id uuid, source_address text, reason text, request_id uuid, grant_id text, username text,
    ttl_seconds integer, expires_at timestamptz, bytes_up bigint, bytes_down bigint
) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO flux.audit (event, outcome, hash, project_id, mode, access, actor_id, actor, token_id, source_address,
                            reason, request_id, grant_id, username, ttl_seconds, expires_at, bytes_up, bytes_down)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
$$;
ALTER TABLE audit OWNER TO {audit};
ALTER FUNCTION record OWNER TO {audit};
REVOKE ALL ON FUNCTION record FROM PUBLIC;

GRANT SELECT, INSERT, UPDATE, DELETE ON users, tokens, projects, grants, activity, rates TO {service};
GRANT SELECT ON audit, catalogue TO {service};
GRANT EXECUTE ON FUNCTION record TO {service};

-- version 2
-- Backups outlive their project, as their files do: no foreign key.
CREATE TABLE backups (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id   uuid NOT NULL,
    hash         text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('project_db', 'tenant_export')),
    status       text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'complete', 'failed')),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    completed_at timestamptz,
    error        text,
    size_bytes   bigint,
    checksum_sha256 text CHECK (checksum_sha256 ~ '^[a-f0-9]{64}$'),
    -- What was counted in the dump's own snapshot, as JSON: what a restore must have.
    manifest     jsonb,
    artifact     text NOT NULL DEFAULT 'pending' CHECK (artifact IN ('pending', 'artifact_valid', 'artifact_invalid')),
    artifact_at  timestamptz,
    artifact_error text,
    restore      text NOT NULL DEFAULT 'pending'
                 CHECK (restore IN ('pending', 'restore_verified', 'restore_failed', 'skipped')),
    restore_at   timestamptz,
    restore_error text,
    -- How the file looked (size, time, inode) when its checksum was last seen to be right.
    stamp        text,
    -- How far the dump or the verification is; null when none runs.
    phase        text,
    progress_bytes bigint NOT NULL DEFAULT 0
);
CREATE INDEX backups_of_project ON backups (project_id, created_at DESC);

-- Whoever holds a lock says so every few seconds; a silent one is dead, and its lock free.
CREATE TABLE backup_locks (
    key          text PRIMARY KEY,
    owner        uuid NOT NULL,
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT, INSERT, UPDATE, DELETE ON backups, backup_locks TO {service};

-- version 3
-- The copy in a second place; null where none was wanted.
ALTER TABLE backups
    ADD COLUMN offsite text CHECK (offsite IN ('pending', 'running', 'complete', 'failed')),
    ADD COLUMN offsite_at timestamptz,
    ADD COLUMN offsite_error text,
    -- Why the last verification ended without a word about the backup itself, or with one; null if it went well.
    ADD COLUMN run_error text;
