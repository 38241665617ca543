-- What the control plane may do in a pool: exactly these functions, installed by `fluxplane pool prepare` as a superuser
-- and run with its power (SECURITY DEFINER), revoked from PUBLIC. The service's login may call ensure, mint, renew, fence,
-- drop, live and retire, for tenants that a superuser adopted for its catalogue, and nothing else: a stolen login can
-- mint, not own the pool. Nothing the caller sends is trusted; every name is built or checked here.

CREATE SCHEMA IF NOT EXISTS flux_plane;
REVOKE ALL ON SCHEMA flux_plane FROM PUBLIC;

-- Which login serves which catalogue; the marker role is named after the catalogue.
CREATE TABLE IF NOT EXISTS flux_plane.service (
    login  name PRIMARY KEY,
    marker name NOT NULL UNIQUE
);
-- Which schema belongs to which project; a superuser says so once (adopt), the service cannot.
CREATE TABLE IF NOT EXISTS flux_plane.tenant (
    project     uuid PRIMARY KEY,
    schema_name name NOT NULL UNIQUE,
    marker      name NOT NULL
);
REVOKE ALL ON flux_plane.service, flux_plane.tenant FROM PUBLIC;

CREATE OR REPLACE FUNCTION flux_plane.marker() RETURNS name
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_marker name;
BEGIN
    SELECT s.marker INTO found_marker FROM flux_plane.service s WHERE s.login = session_user;
    IF found_marker IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'this login serves no catalogue',
            HINT = 'Run "fluxplane pool prepare".';
    END IF;
    RETURN found_marker;
END $$;

CREATE OR REPLACE FUNCTION flux_plane.group_of(project uuid, access text) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ('flux_tenant_' || replace(project::text, '-', '') || CASE access WHEN 'readwrite' THEN '_rw' ELSE '_ro' END)::name
$$;

-- From 16 on a membership says whether it may be SET ROLE to; what a role makes after SET ROLE to its group would
-- outlive the lease.
CREATE OR REPLACE FUNCTION flux_plane.join(member name, joined name, inherit boolean, assume boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('server_version_num')::integer >= 160000 THEN
        EXECUTE format('GRANT %I TO %I WITH INHERIT %s, SET %s', joined, member,
                       CASE WHEN inherit THEN 'TRUE' ELSE 'FALSE' END, CASE WHEN assume THEN 'TRUE' ELSE 'FALSE' END);
    ELSE
        EXECUTE format('GRANT %I TO %I', joined, member);
    END IF;
END $$;

-- The oid of a temporary role of this catalogue; null if there is no such role.
CREATE OR REPLACE FUNCTION flux_plane.ours(role_name name) RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- From the same snapshot as the membership below; to_regrole() already sees what was committed since.
    role_oid oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = role_name);
BEGIN
    IF role_name !~ '^flux_temp_r[ow]_[a-f0-9]{7}_[a-f0-9]{8}$' THEN
        RAISE invalid_name USING MESSAGE = 'not the name of a temporary role';
    END IF;
    IF role_oid IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_auth_members m
        WHERE m.roleid = role_oid AND m.member = to_regrole(quote_ident(flux_plane.marker()))::oid
    ) THEN
        RAISE insufficient_privilege USING MESSAGE = 'not a temporary role of this catalogue';
    END IF;
    RETURN role_oid;
END $$;

-- Superuser only: this schema is that project's, for that login's catalogue.
CREATE OR REPLACE FUNCTION flux_plane.adopt(project uuid, schema_name name, login name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    its_marker name := (SELECT s.marker FROM flux_plane.service s WHERE s.login = adopt.login);
BEGIN
    IF its_marker IS NULL THEN
        RAISE undefined_object USING MESSAGE = 'that login serves no catalogue', HINT = 'Run "fluxplane pool prepare".';
    END IF;
    IF schema_name ~ '^pg_' OR schema_name IN ('public', 'information_schema', 'flux_plane') THEN
        RAISE invalid_name USING MESSAGE = 'not a tenant''s schema';
    END IF;
    INSERT INTO flux_plane.tenant AS t (project, schema_name, marker) VALUES (project, schema_name, its_marker)
    ON CONFLICT ON CONSTRAINT tenant_pkey DO UPDATE SET schema_name = excluded.schema_name, marker = excluded.marker
        WHERE (t.schema_name, t.marker) IS DISTINCT FROM (excluded.schema_name, excluded.marker);
END $$;

-- The tenant's two group roles and all they need, for tables that are there and for those that will come. The row lock
-- keeps two first mints of one tenant apart; no tenant can take it.
CREATE OR REPLACE FUNCTION flux_plane.ensure(project uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    tenant flux_plane.tenant;
    its_access text;
    its_group name;
    maker name;
    on_tables text;
    on_sequences text;
BEGIN
    SELECT t.* INTO tenant FROM flux_plane.tenant t
    WHERE t.project = ensure.project AND t.marker = flux_plane.marker() FOR UPDATE;
    IF tenant IS NULL OR to_regnamespace(quote_ident(tenant.schema_name)) IS NULL THEN
        RAISE invalid_schema_name USING MESSAGE = 'the project has no schema in this pool';
    END IF;
    FOREACH its_access IN ARRAY ARRAY['readonly', 'readwrite'] LOOP
        its_group := flux_plane.group_of(project, its_access);
        on_tables := CASE its_access WHEN 'readonly' THEN 'SELECT' ELSE 'SELECT, INSERT, UPDATE, DELETE' END;
        -- Sequences are read for a dump even by those who may not advance them.
        on_sequences := CASE its_access WHEN 'readonly' THEN 'SELECT' ELSE 'USAGE, SELECT' END;
        IF to_regrole(its_group) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', its_group);
        END IF;
        PERFORM flux_plane.join(its_group, 'flux_pool_guests', true, false);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', tenant.schema_name, its_group);
        EXECUTE format('GRANT %s ON ALL TABLES IN SCHEMA %I TO %I', on_tables, tenant.schema_name, its_group);
        EXECUTE format('GRANT %s ON ALL SEQUENCES IN SCHEMA %I TO %I', on_sequences, tenant.schema_name, its_group);
        -- Whoever may make tables here: the schema's owner above all, the runtime role, an administrator's restore.
        FOR maker IN
            SELECT DISTINCT r.rolname FROM pg_roles r
            WHERE r.oid = (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = tenant.schema_name)
               OR r.rolname = current_user
               OR r.rolname IN (replace(tenant.schema_name, '_api', '_role'), replace(tenant.schema_name, '_api', '_ddl'))
        LOOP
            EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT %s ON TABLES TO %I',
                           maker, tenant.schema_name, on_tables, its_group);
            EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT %s ON SEQUENCES TO %I',
                           maker, tenant.schema_name, on_sequences, its_group);
        END LOOP;
    END LOOP;
END $$;

-- A temporary login role, all at once or not at all; asked twice for the same name, the same role. Answers its schema.
CREATE OR REPLACE FUNCTION flux_plane.mint(
    project uuid, access text, role_name name, verifier text, valid_until timestamptz,
    connections integer, temp_file_mb integer, statement_timeout_s integer, idle_timeout_s integer
) RETURNS name
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    its_marker name := flux_plane.marker();
    its_group name := flux_plane.group_of(project, access);
    its_schema name;
BEGIN
    SELECT t.schema_name INTO its_schema FROM flux_plane.tenant t WHERE t.project = mint.project AND t.marker = its_marker;
    IF its_schema IS NULL OR to_regnamespace(quote_ident(its_schema)) IS NULL THEN
        RAISE invalid_schema_name USING MESSAGE = 'the project has no schema in this pool';
    END IF;
    IF (access = 'readonly' AND role_name ~ '^flux_temp_ro_[a-f0-9]{7}_[a-f0-9]{8}$'
        OR access = 'readwrite' AND role_name ~ '^flux_temp_rw_[a-f0-9]{7}_[a-f0-9]{8}$') IS NOT TRUE THEN
        RAISE invalid_name USING MESSAGE = 'not the name of a temporary role of this access';
    END IF;
    IF (verifier ~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$') IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'not a SCRAM verifier';
    END IF;
    IF (valid_until <= clock_timestamp() + interval '8 hours 5 minutes' AND connections BETWEEN 1 AND 10000
        AND temp_file_mb BETWEEN 0 AND 1048576 AND statement_timeout_s BETWEEN 0 AND 86400
        AND idle_timeout_s BETWEEN 0 AND 86400) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'out of bounds';
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.oid = flux_plane.ours(role_name) AND r.rolcanlogin) THEN
        RETURN its_schema;
    END IF;
    IF to_regrole(its_group) IS NULL THEN
        PERFORM flux_plane.ensure(project);
    END IF;
    EXECUTE format(
        'CREATE ROLE %I LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS '
        'CONNECTION LIMIT %s PASSWORD %L VALID UNTIL %L', role_name, connections, verifier, valid_until);
    PERFORM flux_plane.join(role_name, its_group, true, false);
    PERFORM flux_plane.join(its_marker, role_name, false, false);
    -- Only a superuser can set this one, so it holds; the role can lift the others.
    EXECUTE format('ALTER ROLE %I SET temp_file_limit = %L', role_name, temp_file_mb || 'MB');
    EXECUTE format('ALTER ROLE %I SET search_path = %I, public', role_name, its_schema);
    EXECUTE format('ALTER ROLE %I SET statement_timeout = %L', role_name, statement_timeout_s || 's');
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = %L', role_name, idle_timeout_s || 's');
    IF access = 'readonly' THEN
        EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', role_name);
    END IF;
    RETURN its_schema;
END $$;

CREATE OR REPLACE FUNCTION flux_plane.renew(role_name name, valid_until timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = flux_plane.ours(role_name) AND r.rolcanlogin) THEN
        RAISE undefined_object USING MESSAGE = 'the role has ended';
    END IF;
    IF (valid_until <= clock_timestamp() + interval '8 hours 5 minutes') IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'out of bounds';
    END IF;
    EXECUTE format('ALTER ROLE %I VALID UNTIL %L', role_name, valid_until);
END $$;

-- No new login; and the service may end its sessions and act as the role. Null: there is no such role.
CREATE OR REPLACE FUNCTION flux_plane.fence(role_name name) RETURNS oid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    role_oid oid := flux_plane.ours(role_name);
BEGIN
    IF role_oid IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I NOLOGIN', role_name);
        PERFORM flux_plane.join(session_user, role_name, true, true);
    END IF;
    RETURN role_oid;
END $$;

-- The role, all it owns here and all that anybody granted it here; what it left elsewhere must be gone before.
CREATE OR REPLACE FUNCTION flux_plane.drop(role_name name) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
#variable_conflict use_variable
DECLARE
    role_oid oid := flux_plane.ours(role_name);
    parent record;
    setting_of oid;
BEGIN
    IF role_oid IS NULL THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.oid = role_oid AND r.rolcanlogin) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'the role is not fenced';
    END IF;
    -- Before 16 a member could act as its groups and leave settings or a password on them.
    FOR parent IN
        WITH RECURSIVE up AS (
            SELECT m.roleid FROM pg_auth_members m WHERE m.member = role_oid
            UNION SELECT m.roleid FROM pg_auth_members m JOIN up ON m.member = up.roleid
        )
        SELECT a.rolname, a.rolpassword IS NOT NULL AS has_password,
               ARRAY(SELECT s.setdatabase FROM pg_db_role_setting s WHERE s.setrole = a.oid) AS settings
        FROM up JOIN pg_authid a ON a.oid = up.roleid
    LOOP
        IF parent.has_password THEN
            EXECUTE format('ALTER ROLE %I PASSWORD NULL', parent.rolname);
        END IF;
        FOREACH setting_of IN ARRAY parent.settings LOOP
            EXECUTE format('ALTER ROLE %I %s RESET ALL', parent.rolname, CASE setting_of WHEN 0 THEN ''
                ELSE format('IN DATABASE %I', (SELECT d.datname FROM pg_database d WHERE d.oid = setting_of)) END);
        END LOOP;
    END LOOP;
    -- Any temporary role can name another in an open transaction, and keep it from being dropped by that.
    PERFORM pg_terminate_backend(l.pid) FROM pg_locks l
    JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_roles r ON r.oid = a.usesysid
    WHERE l.locktype = 'object' AND l.classid = 'pg_authid'::regclass AND l.objid = role_oid
      AND r.rolname ~ '^flux_temp_r[ow]_';
    EXECUTE format('DROP OWNED BY %I CASCADE', role_name);
    EXECUTE format('DROP ROLE %I', role_name);
    -- A login that was let in before the fence and showed itself after the last look.
    PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.usesysid = role_oid;
    RETURN true;
END $$;

-- Every role with this catalogue's marker.
CREATE OR REPLACE FUNCTION flux_plane.live() RETURNS TABLE (role_name name, can_login boolean, valid_until timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.rolname, r.rolcanlogin, r.rolvaliduntil
    FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
    WHERE m.member = to_regrole(quote_ident(flux_plane.marker()))::oid
$$;

-- A deleted project's group roles; refused while a temporary role still is in one.
CREATE OR REPLACE FUNCTION flux_plane.retire(project uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    its_group name;
BEGIN
    PERFORM FROM flux_plane.tenant t WHERE t.project = retire.project AND t.marker = flux_plane.marker() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOREACH its_group IN ARRAY ARRAY[flux_plane.group_of(project, 'readonly'), flux_plane.group_of(project, 'readwrite')] LOOP
        CONTINUE WHEN to_regrole(its_group) IS NULL;
        IF EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = to_regrole(its_group)::oid) THEN
            RAISE object_in_use USING MESSAGE = 'a temporary role is still in the group';
        END IF;
        EXECUTE format('DROP OWNED BY %I CASCADE', its_group);
        EXECUTE format('DROP ROLE %I', its_group);
    END LOOP;
    DELETE FROM flux_plane.tenant t WHERE t.project = retire.project;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA flux_plane FROM PUBLIC;
