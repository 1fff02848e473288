-- The hot transactions of PostgreSQL: each is one call, so one round trip, and no client holds a lock while it thinks.
--
-- Why functions and not one large statement: in READ COMMITTED a statement sees the snapshot taken when it began. What
-- must be seen after waiting for a lock has to be read by a later statement, and every statement inside a VOLATILE
-- function has a snapshot of its own. They need READ COMMITTED themselves; the store sees to it.
--
-- A name carries its version. A function that exists is never replaced, for processes of an older release may still
-- call it: what changes gets the next number, and the old one is dropped a release later.
--
-- Arrays of one prefix belong together, one element per row (t turns, r records, n new instances, ...); "_turn" and
-- "_event" say which turn or event of the call a row belongs to, counted from 1. Arrays of which there are no rows stay
-- NULL: unpacking an empty one would cost as much as a look-up.
--
-- A plan that was made while a table was nearly empty is kept while it grows, so that none may be left to the planner's
-- idea of sizes. A table is looked up by "= ANY (array)" and not joined, or row by row in a LATERAL sub-select that OFFSET
-- keeps as it is. Never both: each row would search the array. "IS TRUE" keeps an IN from becoming a join.
--
-- Lock order: accept lock, source positions, identities by digest, instances by id, then everything else.

-- The first event that a wait has not received, or NULL; none while its shape is being filled.
-- Two probes and not one: with both addressees in one condition all later events would have to be sorted.
CREATE FUNCTION edda_first_event_1(p_hash bytea, p_chain text, p_cursor bigint, p_skip bigint, p_shape bigint)
RETURNS TABLE (seq bigint) LANGUAGE sql STABLE AS $$
    SELECT min(e.seq)
    FROM (
        (SELECT k.seq FROM edda_event_keys k
         WHERE k.hash = p_hash AND k.addressee = '' AND k.seq > p_cursor AND k.seq <> p_skip
         ORDER BY k.seq LIMIT 1)
        UNION ALL
        (SELECT k.seq FROM edda_event_keys k
         WHERE k.hash = p_hash AND k.addressee = p_chain AND k.seq > p_cursor AND k.seq <> p_skip
         ORDER BY k.seq LIMIT 1)
    ) e
    WHERE NOT EXISTS (SELECT 1 FROM edda_shapes s WHERE s.id = p_shape AND NOT s.ready)
$$

-- next --

-- Insert new instances in the order of the arrays (callers sort by id), but for those whose id or live key is taken.
-- With an owner they are born running with fence 1. Answers what was inserted.
CREATE FUNCTION edda_insert_1(
    p_now bigint, n_take boolean[],
    n_id text[], n_app text[], n_workflow text[], n_version text[], n_owner text[], n_chain text[],
    n_chain_started_at bigint[], n_live_key bytea[], n_priority smallint[], n_delay bigint[], n_start_event bigint[],
    n_parent text[], n_parent_seq integer[], n_input bytea[], n_carried bytea[]
) RETURNS TABLE (o_id text, o_app text, o_start_event bigint) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    INSERT INTO edda_instances AS i (
        id, app, workflow, version, state, owner, fence, signals, chain, chain_started_at, live_key, priority,
        available_at, recoveries, start_event, parent, parent_seq, created_at, updated_at, input, carried)
    SELECT n.id, n.app, n.workflow, n.version, CASE WHEN n.owner IS NULL THEN 'runnable' ELSE 'running' END, n.owner,
           CASE WHEN n.owner IS NULL THEN 0 ELSE 1 END, 0, n.chain, coalesce(n.chain_started_at, p_now), n.live_key,
           n.priority, p_now + n.delay, 0, n.start_event, n.parent, n.parent_seq, p_now, p_now, n.input, n.carried
    FROM unnest(
        n_take, n_id, n_app, n_workflow, n_version, n_owner, n_chain, n_chain_started_at, n_live_key, n_priority,
        n_delay, n_start_event, n_parent, n_parent_seq, n_input, n_carried
    ) AS n(take, id, app, workflow, version, owner, chain, chain_started_at, live_key, priority, delay, start_event,
           parent, parent_seq, input, carried)
    WHERE n.take
    ON CONFLICT DO NOTHING
    RETURNING i.id::text, i.app::text, i.start_event;
END
$$

-- next --

-- Mark waits due and signal their instances, under the instances' locks; answers the apps and how many waits.
-- What changed before the locks were had is looked at again: a wait that is gone, replaced or due already is left.
-- Of events (w_hash) it is looked for again if p_look says so; of timers the deadline is.
CREATE FUNCTION edda_signal_1(
    p_now bigint, p_look boolean, w_instance text[], w_seq integer[], w_hash bytea[],
    OUT o_apps text[], OUT o_marked integer
) LANGUAGE plpgsql AS $$
DECLARE
    v_ids text[];
BEGIN
    PERFORM 1 FROM edda_instances i WHERE i.id = ANY (w_instance) ORDER BY i.id FOR NO KEY UPDATE;
    WITH marked AS (
        UPDATE edda_waits w SET due = true
        WHERE w.instance_id = ANY (w_instance) AND NOT w.due
          AND CASE
                  WHEN w_hash IS NULL THEN w.deadline <= p_now AND (w.instance_id, w.seq) IN (
                      SELECT m.instance_id, m.seq FROM unnest(w_instance, w_seq) AS m(instance_id, seq))
                  ELSE (w.instance_id, w.seq, w.hash) IN (
                      SELECT m.instance_id, m.seq, m.hash
                      FROM unnest(w_instance, w_seq, w_hash) AS m(instance_id, seq, hash)
                  ) AND (NOT p_look OR EXISTS (
                      SELECT 1 FROM edda_first_event_1(w.hash, w.chain, w.cursor, w.skip, w.shape_id) f
                      WHERE f.seq IS NOT NULL))
              END
        RETURNING w.instance_id
    )
    SELECT array_agg(DISTINCT m.instance_id), count(*) INTO v_ids, o_marked FROM marked m;
    WITH signalled AS (
        UPDATE edda_instances i
        SET signals = i.signals + 1,
            state = CASE WHEN i.state = 'waiting' THEN 'runnable' ELSE i.state END,
            available_at = CASE WHEN i.state = 'waiting' THEN p_now ELSE i.available_at END,
            updated_at = CASE WHEN i.state = 'waiting' THEN p_now ELSE i.updated_at END
        WHERE i.id = ANY (v_ids) AND i.ended_at IS NULL
        RETURNING i.app
    )
    SELECT array_agg(DISTINCT s.app) INTO o_apps FROM signalled s;
END
$$

-- next --

-- Waits of these hashes that have an unreceived event and are not due; at most p_limit of them. If that was all, what
-- accepts had left of them is forgotten: as it was before the look, for an accept that comes meanwhile leaves rows that
-- this look has not answered.
CREATE FUNCTION edda_mark_due_1(p_offset bigint, p_hashes bytea[], p_limit integer, OUT o_apps text[], OUT o_more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + p_offset;
    v_instances text[];
    v_seqs integer[];
    v_hashes bytea[];
    u_hash bytea[];  -- what accepts have left
    u_seq bigint[];
BEGIN
    SELECT array_agg(u.hash), array_agg(u.seq) INTO u_hash, u_seq
    FROM edda_unmarked u WHERE u.hash = ANY (p_hashes);
    SELECT array_agg(f.instance_id), array_agg(f.seq), array_agg(f.hash) INTO v_instances, v_seqs, v_hashes
    FROM (
        SELECT w.instance_id, w.seq, w.hash FROM edda_waits w
        WHERE w.hash = ANY (p_hashes) AND w.kind = 'event' AND NOT w.due AND EXISTS (
            SELECT 1 FROM edda_first_event_1(w.hash, w.chain, w.cursor, w.skip, w.shape_id) f WHERE f.seq IS NOT NULL)
        LIMIT p_limit + 1
    ) f;
    o_more := coalesce(cardinality(v_seqs) > p_limit, false);
    IF v_seqs IS NOT NULL THEN
        SELECT s.o_apps INTO o_apps
        FROM edda_signal_1(v_now, true, v_instances[:p_limit], v_seqs[:p_limit], v_hashes[:p_limit]) s;
    END IF;
    IF u_seq IS NOT NULL AND NOT o_more THEN
        DELETE FROM edda_unmarked u
        WHERE u.hash = ANY (u_hash) AND ((u.hash, u.seq) IN (
            SELECT m.hash, m.seq FROM unnest(u_hash, u_seq) AS m(hash, seq))) IS TRUE;
    END IF;
END
$$

-- next --

-- Waits whose deadline has passed, at most p_limit of them.
CREATE FUNCTION edda_fire_timers_1(p_offset bigint, p_limit integer, OUT o_apps text[], OUT o_fired integer)
LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + p_offset;
    v_instances text[];
    v_seqs integer[];
BEGIN
    SELECT array_agg(f.instance_id), array_agg(f.seq) INTO v_instances, v_seqs
    FROM (
        SELECT w.instance_id, w.seq FROM edda_waits w
        WHERE NOT w.due AND w.deadline <= v_now ORDER BY w.deadline LIMIT p_limit
    ) f;
    o_fired := 0;
    IF v_seqs IS NOT NULL THEN
        SELECT s.o_apps, s.o_marked INTO o_apps, o_fired
        FROM edda_signal_1(v_now, false, v_instances, v_seqs, NULL) s;
    END IF;
END
$$

-- next --

-- A flush of turns of different instances. See Storage.flush for what it promises; the numbers there are the ones here.
-- p_lock: the accept lock's key if events are met (taken shared, first), else NULL.
-- p_careful: a record exists already, so that an earlier try may have been committed: look before writing.
-- Answers per turn 1 applied, 2 kept, 3 lost, 4 exists; the instance's signals; the event for which an end was kept.
CREATE FUNCTION edda_flush_1(
    p_offset bigint, p_lock bigint, p_careful boolean,
    -- turns: release 0 keep, 1 park, 2 end, 3 yield, 4 pause
    t_id text[], t_owner text[], t_fence bigint[], t_signals bigint[], t_release integer[],
    -- records, those of a turn in its order
    r_turn integer[] = NULL, r_seq integer[] = NULL, r_pos integer[] = NULL, r_kind text[] = NULL, r_name text[] = NULL,
    r_args_hash bytea[] = NULL, r_payload bytea[] = NULL, r_content_type text[] = NULL, r_recorded_at bigint[] = NULL,
    -- waits
    w_turn integer[] = NULL, w_id text[] = NULL, w_seq integer[] = NULL, w_kind text[] = NULL, w_name text[] = NULL,
    w_hash bytea[] = NULL, w_shape bigint[] = NULL, w_cursor bigint[] = NULL, w_since bigint[] = NULL,
    w_skip bigint[] = NULL, w_delay bigint[] = NULL, w_deadline bigint[] = NULL, w_detail bytea[] = NULL,
    -- waits to drop
    d_turn integer[] = NULL, d_id text[] = NULL, d_seq integer[] = NULL,
    -- outbox rows
    m_turn integer[] = NULL, m_destination text[] = NULL, m_ordering_key text[] = NULL, m_type text[] = NULL,
    m_source text[] = NULL, m_event_id text[] = NULL, m_attributes bytea[] = NULL, m_data bytea[] = NULL,
    m_content_type text[] = NULL, m_instance text[] = NULL,
    -- outcomes of ends and pauses
    e_turn integer[] = NULL, e_id text[] = NULL, e_state text[] = NULL, e_output bytea[] = NULL,
    e_output_type text[] = NULL, e_error bytea[] = NULL,
    -- events that an end must not leave behind, and those of them that were received
    u_turn integer[] = NULL, u_hash bytea[] = NULL, u_after bigint[] = NULL,
    x_turn integer[] = NULL, x_seq bigint[] = NULL,
    -- new instances: role 0 start, 1 child, 2 successor
    n_turn integer[] = NULL, n_role integer[] = NULL,
    n_id text[] = NULL, n_app text[] = NULL, n_workflow text[] = NULL, n_version text[] = NULL, n_owner text[] = NULL,
    n_chain text[] = NULL, n_chain_started_at bigint[] = NULL, n_live_key bytea[] = NULL, n_priority smallint[] = NULL,
    n_delay bigint[] = NULL, n_start_event bigint[] = NULL, n_parent text[] = NULL, n_parent_seq integer[] = NULL,
    n_input bytea[] = NULL, n_carried bytea[] = NULL,
    -- turns after which their instance has recovered
    z_turn integer[] = NULL,
    OUT o_now bigint, OUT o_applied integer[], OUT o_signals bigint[], OUT o_unread bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    v_starts integer[];  -- turns that start their instance
    v_ours boolean[];    -- locked under the turn's fence
    v_fresh boolean[];   -- ours, and not written by an earlier try
    v_kept boolean[];    -- ours, but news forbids the release
    v_news text[];       -- instances whose new waits are due at once
    v_parking text[];
    v_parked text[];
    v_ended text[];
BEGIN
    IF p_lock IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock_shared(p_lock);
    END IF;
    o_now := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + p_offset;

    -- (0) Starts.
    IF 0 = ANY (n_role) THEN
        v_starts := ARRAY(SELECT n.turn FROM unnest(n_turn, n_role) AS n(turn, role) WHERE n.role = 0);
        PERFORM 1 FROM edda_insert_1(
            o_now, ARRAY(SELECT n.role = 0 FROM unnest(n_role) WITH ORDINALITY AS n(role, at) ORDER BY n.at),
            n_id, n_app, n_workflow, n_version, n_owner, n_chain, n_chain_started_at, n_live_key, n_priority, n_delay,
            n_start_event, n_parent, n_parent_seq, n_input, n_carried);
    END IF;

    -- (1) Lock in id order, then compare what is locked: its newest version, whatever this statement's snapshot says.
    -- Only a release takes the owner away and leaves the fence: then an earlier try of this turn was committed. Not so
    -- for a start: that may be an older instance of the same id.
    WITH locked AS MATERIALIZED (
        SELECT i.id, i.owner, i.fence, i.signals FROM edda_instances i WHERE i.id = ANY (t_id)
        ORDER BY i.id FOR NO KEY UPDATE
    ), judged AS (
        SELECT coalesce(l.signals, 0) AS signals,
               t.release IN (1, 2) AND l.signals IS DISTINCT FROM t.signals AS kept,
               CASE
                   WHEN l.fence = t.fence AND l.owner = t.owner THEN 0
                   WHEN t.at = ANY (v_starts) THEN 4
                   WHEN l.fence = t.fence AND l.owner IS NULL AND t.release > 0 THEN 1
                   ELSE 3
               END AS verdict
        FROM unnest(t_id, t_owner, t_fence, t_signals, t_release) WITH ORDINALITY
             AS t(id, owner, fence, signals, release, at)
        LEFT JOIN locked l ON l.id = t.id
        ORDER BY t.at
    )
    SELECT array_agg(j.verdict), array_agg(j.signals), array_agg(j.verdict = 0), array_agg(j.kept)
    INTO o_applied, o_signals, v_ours, v_kept
    FROM judged j;

    -- (2) What an earlier try, or another owner, has written.
    v_fresh := v_ours;
    IF p_careful THEN
        WITH firsts AS (
            SELECT r.turn, (array_agg(r.seq ORDER BY r.at))[1] AS seq
            FROM unnest(r_turn, r_seq) WITH ORDINALITY AS r(turn, seq, at) GROUP BY r.turn
        ), judged AS (
            SELECT CASE WHEN v_ours[t.at] AND h.fence <> t.fence THEN 3 ELSE o_applied[t.at] END AS verdict,
                   h.fence IS NULL AS fresh
            FROM unnest(t_id, t_fence) WITH ORDINALITY AS t(id, fence, at)
            LEFT JOIN firsts f ON f.turn = t.at
            LEFT JOIN LATERAL (
                SELECT h.fence FROM edda_history h WHERE h.instance_id = t.id AND h.seq = f.seq OFFSET 0
            ) h ON true
            ORDER BY t.at
        )
        SELECT array_agg(j.verdict), array_agg(j.verdict = 0), array_agg(j.verdict = 0 AND j.fresh)
        INTO o_applied, v_ours, v_fresh
        FROM judged j;
        -- What an earlier try has registered may have been due at once, and its owner has not heard of it.
        v_news := ARRAY(
            SELECT DISTINCT w.instance_id FROM edda_waits w
            WHERE w.instance_id = ANY (w_id) AND w.due AND w.kind = 'event' AND ((w.instance_id, w.seq) IN (
                SELECT n.id, n.seq FROM unnest(w_turn, w_id, w_seq, w_kind) AS n(turn, id, seq, kind)
                WHERE n.kind = 'event' AND v_ours[n.turn] AND NOT v_fresh[n.turn])) IS TRUE);
    END IF;

    -- (3) What the turns write. A record that exists already is refused by its key: the call is repeated, careful.
    IF true = ANY (v_fresh) THEN
        INSERT INTO edda_history (
            instance_id, seq, pos, fence, kind, name, args_hash, payload, content_type, recorded_at)
        SELECT t.id, r.seq, r.pos, t.fence, r.kind, r.name, r.args_hash, r.payload, r.content_type,
               coalesce(r.recorded_at, o_now)
        FROM unnest(r_turn, r_seq, r_pos, r_kind, r_name, r_args_hash, r_payload, r_content_type, r_recorded_at)
             AS r(turn, seq, pos, kind, name, args_hash, payload, content_type, recorded_at)
        JOIN unnest(t_id, t_fence, v_fresh) WITH ORDINALITY AS t(id, fence, fresh, at) ON t.at = r.turn
        WHERE t.fresh;

        IF cardinality(d_turn) > 0 THEN
            DELETE FROM edda_waits w
            WHERE w.instance_id = ANY (d_id) AND ((w.instance_id, w.seq) IN (
                SELECT d.id, d.seq FROM unnest(d_turn, d_id, d_seq) AS d(turn, id, seq) WHERE v_fresh[d.turn])) IS TRUE;
        END IF;

        IF cardinality(w_turn) > 0 THEN
            -- A later statement than the accept lock's: it sees what was accepted while we waited for the lock. After
            -- a yield or a pause the next owner looks.
            WITH registered AS (
                INSERT INTO edda_waits AS w (
                    instance_id, seq, kind, name, hash, chain, shape_id, cursor, skip, deadline, due, detail)
                SELECT n.id, n.seq, n.kind, n.name, n.hash, i.chain, n.shape, c.cursor, n.skip, c.deadline,
                       n.kind = 'event' AND t_release[n.turn] < 3 AND EXISTS (
                           SELECT 1 FROM edda_first_event_1(n.hash, i.chain, c.cursor, n.skip, n.shape) f
                           WHERE f.seq IS NOT NULL),
                       n.detail
                FROM unnest(w_turn, w_id, w_seq, w_kind, w_name, w_hash, w_shape, w_cursor, w_since, w_skip, w_delay,
                            w_deadline, w_detail)
                     AS n(turn, id, seq, kind, name, hash, shape, cursor, since, skip, delay, deadline, detail)
                CROSS JOIN LATERAL (SELECT i.chain FROM edda_instances i WHERE i.id = n.id OFFSET 0) i
                CROSS JOIN LATERAL (
                    SELECT coalesce(o_now + n.delay, n.deadline) AS deadline,
                           greatest(n.cursor, (
                               SELECT e.seq FROM edda_events e WHERE e.accepted_at < n.since
                               ORDER BY e.accepted_at DESC, e.seq DESC LIMIT 1)) AS cursor
                ) c
                WHERE v_fresh[n.turn]
                ON CONFLICT (instance_id, seq) DO UPDATE
                SET kind = excluded.kind, name = excluded.name, hash = excluded.hash, chain = excluded.chain,
                    shape_id = excluded.shape_id, cursor = excluded.cursor, skip = excluded.skip,
                    deadline = excluded.deadline, due = excluded.due, detail = excluded.detail
                RETURNING w.instance_id, w.due
            )
            SELECT v_news || array_agg(DISTINCT r.instance_id::text) INTO v_news FROM registered r WHERE r.due;
        END IF;

        IF cardinality(m_turn) > 0 THEN
            INSERT INTO edda_outbox (
                destination, ordering_key, state, type, source, event_id, attributes, data, content_type, attempts,
                available_at, created_at, instance_id)
            SELECT m.destination, m.ordering_key, 'pending', m.type, m.source, m.event_id, m.attributes, m.data,
                   m.content_type, 0, o_now, o_now, m.instance
            FROM unnest(m_turn, m_destination, m_ordering_key, m_type, m_source, m_event_id, m_attributes, m_data,
                        m_content_type, m_instance) WITH ORDINALITY
                 AS m(turn, destination, ordering_key, type, source, event_id, attributes, data, content_type, instance, at)
            WHERE v_fresh[m.turn]
            ORDER BY m.at;
        END IF;

        IF cardinality(z_turn) > 0 THEN
            UPDATE edda_instances i SET recoveries = 0
            WHERE i.recoveries <> 0 AND i.id = ANY (ARRAY(
                SELECT t.id FROM unnest(t_id, v_fresh) WITH ORDINALITY AS t(id, fresh, at)
                WHERE t.fresh AND t.at = ANY (z_turn)));
        END IF;
    END IF;

    -- (4) Releases.
    IF 3 = ANY (t_release) THEN
        UPDATE edda_instances i SET owner = NULL, state = 'runnable', available_at = o_now, updated_at = o_now
        WHERE i.id = ANY (ARRAY(
            SELECT t.id FROM unnest(t_id, t_release, v_ours) AS t(id, release, ours) WHERE t.release = 3 AND t.ours));
    END IF;

    IF 1 = ANY (t_release) THEN
        v_parking := ARRAY(
            SELECT t.id FROM unnest(t_id, t_release, v_ours, v_kept) AS t(id, release, ours, kept)
            WHERE t.release = 1 AND t.ours AND NOT t.kept);
        UPDATE edda_waits w SET due = NOT w.due
        WHERE w.instance_id = ANY (v_parking) AND w.due <> (
            (w.kind <> 'event' AND w.due) OR coalesce(w.deadline <= o_now, false) OR (w.kind = 'event' AND EXISTS (
                SELECT 1 FROM edda_first_event_1(w.hash, w.chain, w.cursor, w.skip, w.shape_id) f
                WHERE f.seq IS NOT NULL)));
        WITH parked AS (
            UPDATE edda_instances i SET owner = NULL, state = 'waiting', updated_at = o_now
            WHERE i.id = ANY (v_parking) AND i.id <> ALL (ARRAY(
                SELECT w.instance_id FROM edda_waits w WHERE w.instance_id = ANY (v_parking) AND w.due))
            RETURNING i.id
        )
        SELECT array_agg(p.id) INTO v_parked FROM parked p;
        v_news := v_news || ARRAY(
            SELECT p.id FROM unnest(v_parking) AS p(id) EXCEPT SELECT p.id FROM unnest(v_parked) AS p(id));
    END IF;

    IF cardinality(u_turn) > 0 THEN
        WITH unread AS (
            SELECT u.turn, min(k.seq) AS seq
            FROM unnest(u_turn, u_hash, u_after) AS u(turn, hash, after)
            CROSS JOIN LATERAL (
                SELECT k.seq FROM edda_event_keys k WHERE k.hash = u.hash AND k.addressee = '' AND k.seq > u.after OFFSET 0
            ) k
            LEFT JOIN unnest(x_turn, x_seq) AS x(turn, seq) ON x.turn = u.turn AND x.seq = k.seq
            WHERE x.seq IS NULL
            GROUP BY u.turn
        )
        SELECT array_agg(CASE WHEN v_ours[t.at] AND NOT v_kept[t.at] THEN u.seq END ORDER BY t.at),
               array_agg(v_kept[t.at] OR u.seq IS NOT NULL ORDER BY t.at)
        INTO o_unread, v_kept
        FROM unnest(t_id) WITH ORDINALITY AS t(id, at)
        LEFT JOIN unread u ON u.turn = t.at;
    END IF;

    IF cardinality(e_turn) > 0 THEN
        WITH ended AS (
            UPDATE edda_instances i
            SET state = e.state, owner = NULL, output = e.output, output_type = e.output_type, error = e.error,
                updated_at = o_now, ended_at = CASE WHEN t_release[e.turn] = 2 THEN o_now ELSE i.ended_at END,
                live_key = CASE WHEN t_release[e.turn] = 2 THEN NULL ELSE i.live_key END
            FROM unnest(e_turn, e_id, e_state, e_output, e_output_type, e_error)
                 AS e(turn, id, state, output, output_type, error)
            -- The row of the array is found by a value that is no column: see above.
            WHERE v_ours[e.turn] AND NOT v_kept[e.turn] AND i.id = ANY (e_id) AND i.id || '' = e.id
            RETURNING i.id, i.ended_at
        )
        SELECT array_agg(e.id) FILTER (WHERE e.ended_at IS NOT NULL) INTO v_ended FROM ended e;
        DELETE FROM edda_waits w WHERE w.instance_id = ANY (v_ended);
    END IF;

    -- Children with their turn; successors after the end of what they succeed has set its live key free.
    IF 0 < ANY (n_role) THEN
        PERFORM 1 FROM edda_insert_1(
            o_now, ARRAY(
                SELECT CASE n.role
                           WHEN 1 THEN v_fresh[n.turn]
                           WHEN 2 THEN v_ours[n.turn] AND NOT v_kept[n.turn] AND t_release[n.turn] = 2
                           ELSE false
                       END
                FROM unnest(n_turn, n_role) WITH ORDINALITY AS n(turn, role, at) ORDER BY n.at),
            n_id, n_app, n_workflow, n_version, n_owner, n_chain, n_chain_started_at, n_live_key, n_priority, n_delay,
            n_start_event, n_parent, n_parent_seq, n_input, n_carried);
    END IF;

    SELECT array_agg(
        CASE
            WHEN NOT t.ours THEN t.applied
            WHEN t.kept OR (t.release < 2 AND t.id = ANY (v_news)) THEN 2
            ELSE 1
        END ORDER BY t.at)
    INTO o_applied
    FROM unnest(t_id, t_release, o_applied, v_ours, v_kept) WITH ORDINALITY AS t(id, release, applied, ours, kept, at);
END
$$

-- next --

-- A batch of events. See Storage.accept for what it promises; the numbers there are the ones here.
-- p_twins: some of the events are equal. p_most: how many waits are woken here.
-- Answers per event 0 stored now, 1 stored by an earlier try, 2 duplicate, 3 conflict, 4 stale position, and its accept
-- sequence; the hashes of the waits that were woken, and if any event is addressed, their chains and per event the chain
-- it wakes; the start events of what was started; the apps to tell; the hashes of more waits; the stale positions and
-- what is stored for them. o_routing: the version, if p_routing is not it; then nothing was written.
CREATE FUNCTION edda_accept_1(
    p_offset bigint, p_lock bigint, p_batch bytea, p_routing bigint, p_twins boolean, p_most integer,
    -- source positions
    p_cluster text[] = NULL, p_group text[] = NULL, p_topic text[] = NULL, p_partition integer[] = NULL,
    p_from bigint[] = NULL, p_next bigint[] = NULL,
    -- events
    e_digest bytea[] = NULL, e_data_hash bytea[] = NULL, e_type text[] = NULL, e_source text[] = NULL,
    e_event_id text[] = NULL, e_attributes bytea[] = NULL, e_data bytea[] = NULL, e_content_type text[] = NULL,
    e_addressee text[] = NULL, e_position integer[] = NULL,
    -- their keys
    k_event integer[] = NULL, k_hash bytea[] = NULL,
    -- poison
    l_position integer[] = NULL, l_origin text[] = NULL, l_raw bytea[] = NULL, l_headers bytea[] = NULL,
    l_reason text[] = NULL, l_attempts integer[] = NULL,
    -- what they start
    n_event integer[] = NULL,
    n_id text[] = NULL, n_app text[] = NULL, n_workflow text[] = NULL, n_version text[] = NULL, n_owner text[] = NULL,
    n_chain text[] = NULL, n_chain_started_at bigint[] = NULL, n_live_key bytea[] = NULL, n_priority smallint[] = NULL,
    n_delay bigint[] = NULL, n_parent text[] = NULL, n_parent_seq integer[] = NULL, n_input bytea[] = NULL,
    n_carried bytea[] = NULL,
    OUT o_routing bigint, OUT o_verdict integer[], OUT o_seq bigint[], OUT o_hash bytea[], OUT o_chain text[],
    OUT o_addressed text[], OUT o_started bigint[], OUT o_apps text[], OUT o_more bytea[], OUT o_stale bigint[],
    OUT o_stored bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint;
    v_routing bigint;
    v_last bigint;
    v_repeated boolean := false;    -- an earlier try was committed (looked at only where it matters)
    v_chain text[] := e_addressee;  -- whom each event is addressed to: the chain; an unknown id stands for itself
    v_ended boolean[];              -- addressed to an instance that has ended: it wakes nobody
    v_anybody bytea[];              -- hashes of events that are addressed to nobody
    v_events integer[];             -- keys to insert: of which event
    v_keys bytea[];
    v_chains text[];
    w_instance text[];              -- waits to wake
    w_seq integer[];
    w_hash bytea[];
    w_chain text[];
    v_apps text[];
BEGIN
    PERFORM pg_advisory_xact_lock(p_lock);
    SELECT a.routing_version, a.last_seq, a.last_accepted_at INTO v_routing, v_last, v_now
    FROM edda_accept a WHERE a.id = 1;
    -- (1)
    IF v_routing <> p_routing THEN
        o_routing := v_routing;
        RETURN;
    END IF;
    -- Accepted in order, also when the clock was set back.
    v_now := greatest(v_now, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + p_offset);

    -- (2) Source positions. What an earlier try of this batch has moved is where it should be.
    IF cardinality(p_topic) > 0 OR cardinality(l_origin) > 0 THEN
        v_repeated := EXISTS (
            SELECT 1 FROM edda_identities i WHERE i.digest = ANY (e_digest) AND i.batch_id = p_batch);
    END IF;
    IF cardinality(l_origin) > 0 THEN
        v_repeated := v_repeated OR EXISTS (SELECT 1 FROM edda_dead_letters d WHERE d.batch_id = p_batch);
    END IF;
    IF cardinality(p_topic) > 0 THEN
        WITH stored AS MATERIALIZED (
            SELECT s.cluster, s.group_id, s.topic, s.partition_id, s.next_offset FROM edda_source_positions s
            WHERE (s.cluster, s.group_id, s.topic, s.partition_id) IN (
                SELECT p.cluster, p.group_id, p.topic, p.partition_id
                FROM unnest(p_cluster, p_group, p_topic, p_partition) AS p(cluster, group_id, topic, partition_id))
            ORDER BY s.cluster, s.group_id, s.topic, s.partition_id FOR NO KEY UPDATE OF s
        )
        SELECT array_agg(p.at), array_agg(s.next_offset) INTO o_stale, o_stored
        FROM unnest(p_cluster, p_group, p_topic, p_partition, p_from, p_next) WITH ORDINALITY
             AS p(cluster, group_id, topic, partition_id, fetched_from, next_offset, at)
        JOIN stored s USING (cluster, group_id, topic, partition_id)
        WHERE s.next_offset <> CASE WHEN v_repeated THEN p.next_offset ELSE p.fetched_from END;
        IF NOT v_repeated THEN
            INSERT INTO edda_source_positions (cluster, group_id, topic, partition_id, next_offset)
            SELECT p.cluster, p.group_id, p.topic, p.partition_id, p.next_offset
            FROM unnest(p_cluster, p_group, p_topic, p_partition, p_next) WITH ORDINALITY
                 AS p(cluster, group_id, topic, partition_id, next_offset, at)
            WHERE p.at <> ALL (coalesce(o_stale, '{}'))
            ON CONFLICT (cluster, group_id, topic, partition_id) DO UPDATE SET next_offset = excluded.next_offset;
        END IF;
    END IF;

    -- (3) Identities. The lock makes the look before the insert safe; the key has the last word.
    WITH looked AS (
        SELECT e.at, i.seq,
               CASE
                   WHEN i.batch_id = p_batch THEN 1
                   WHEN e.position = ANY (o_stale) THEN 4
                   WHEN i.seq IS NULL THEN 0
                   WHEN i.data_hash = e.data_hash THEN 2
                   ELSE 3
               END AS verdict
        FROM unnest(e_digest, e_data_hash, e_position) WITH ORDINALITY AS e(digest, data_hash, position, at)
        LEFT JOIN LATERAL (
            SELECT i.data_hash, i.seq, i.batch_id FROM edda_identities i WHERE i.digest = e.digest OFFSET 0
        ) i ON true
    ), numbered AS (
        SELECT l.*, v_last + count(*) FILTER (WHERE l.verdict = 0) OVER (ORDER BY l.at) AS next_seq FROM looked l
        ORDER BY l.at
    )
    SELECT array_agg(n.verdict), array_agg(CASE n.verdict WHEN 0 THEN n.next_seq WHEN 4 THEN 0 ELSE n.seq END)
    INTO o_verdict, o_seq
    FROM numbered n;
    IF p_twins THEN
        -- Of equal ones the first that is ours counts.
        WITH grouped AS (
            SELECT e.*, CASE WHEN e.verdict < 2 THEN min(e.at) OVER (PARTITION BY e.verdict < 2, e.digest) END AS first
            FROM unnest(e_digest, e_data_hash, o_verdict, o_seq) WITH ORDINALITY AS e(digest, data_hash, verdict, seq, at)
        ), numbered AS (
            SELECT g.*, CASE g.verdict
                            WHEN 0 THEN v_last + count(*) FILTER (WHERE g.verdict = 0 AND g.first = g.at) OVER (ORDER BY g.at)
                            ELSE g.seq
                        END AS next_seq
            FROM grouped g
        ), judged AS (
            SELECT coalesce(f.next_seq, n.next_seq) AS seq,
                   CASE WHEN n.first = n.at OR n.first IS NULL THEN n.verdict WHEN f.data_hash = n.data_hash THEN 2 ELSE 3 END
                       AS verdict
            FROM numbered n LEFT JOIN numbered f ON f.at = n.first
            ORDER BY n.at
        )
        SELECT array_agg(j.verdict), array_agg(j.seq) INTO o_verdict, o_seq FROM judged j;
    END IF;

    IF 0 = ANY (o_verdict) THEN
        INSERT INTO edda_identities (digest, data_hash, seq, batch_id)
        SELECT e.digest, e.data_hash, e.seq, p_batch
        FROM unnest(e_digest, e_data_hash, o_seq, o_verdict) AS e(digest, data_hash, seq, verdict)
        WHERE e.verdict = 0
        ORDER BY e.digest;

        -- (4) Events and their keys.
        IF EXISTS (SELECT 1 FROM unnest(e_addressee) AS e(addressee) WHERE e.addressee IS NOT NULL) THEN
            SELECT array_agg(coalesce(i.chain, e.addressee) ORDER BY e.at), array_agg(i.ended_at IS NOT NULL AND i.state <> 'recurred' ORDER BY e.at)
            INTO v_chain, v_ended
            FROM unnest(e_addressee) WITH ORDINALITY AS e(addressee, at)
            LEFT JOIN LATERAL (
                SELECT i.chain, i.ended_at, i.state FROM edda_instances i WHERE i.id = e.addressee OFFSET 0
            ) i ON true;
        END IF;
        INSERT INTO edda_events (
            seq, type, source, event_id, attributes, data, content_type, addressee, accepted_at)
        SELECT e.seq, e.type, e.source, e.event_id, e.attributes, e.data, e.content_type, e.chain, v_now
        FROM unnest(o_verdict, o_seq, e_type, e_source, e_event_id, e_attributes, e_data, e_content_type, v_chain)
             AS e(verdict, seq, type, source, event_id, attributes, data, content_type, chain)
        WHERE e.verdict = 0;
        UPDATE edda_accept a SET last_accepted_at = v_now, last_seq = v_last + (
            SELECT count(*) FROM unnest(o_verdict) AS e(verdict) WHERE e.verdict = 0)
        WHERE a.id = 1;
    END IF;

    -- What an earlier try has woken is not known any more: whoever lives may look. And perhaps nobody has gone on yet.
    IF 1 = ANY (o_verdict) THEN
        o_apps := ARRAY(SELECT DISTINCT w.app FROM edda_workers w WHERE NOT w.dead);
        o_more := ARRAY(
            SELECT u.hash FROM edda_unmarked u WHERE u.hash = ANY (ARRAY(
                SELECT k.hash FROM unnest(k_event, k_hash) AS k(event, hash) WHERE o_verdict[k.event] = 1)));
    END IF;

    -- Keys of what is stored now, with the chain it is addressed to.
    SELECT array_agg(k.event), array_agg(k.hash), array_agg(e.chain) INTO v_events, v_keys, v_chains
    FROM unnest(k_event, k_hash) AS k(event, hash)
    JOIN unnest(v_chain) WITH ORDINALITY AS e(chain, at) ON e.at = k.event
    WHERE o_verdict[k.event] = 0;
    IF v_keys IS NOT NULL THEN
        INSERT INTO edda_event_keys (hash, addressee, seq)
        SELECT k.hash, coalesce(k.chain, ''), o_seq[k.event]
        FROM unnest(v_events, v_keys, v_chains) AS k(event, hash, chain);

        -- (5) Waits that match: by hash, and if addressed by chain, too. No event wait is registered meanwhile.
        v_anybody := ARRAY(
            SELECT DISTINCT k.hash FROM unnest(v_keys, v_chains) AS k(hash, chain) WHERE k.chain IS NULL);
        SELECT array_agg(f.instance_id), array_agg(f.seq), array_agg(f.hash), array_agg(f.chain)
        INTO w_instance, w_seq, w_hash, w_chain
        FROM (
            SELECT w.instance_id, w.seq, w.hash, w.chain FROM edda_waits w
            WHERE w.hash = ANY (v_anybody) AND w.kind = 'event' AND NOT w.due
            UNION ALL
            SELECT w.instance_id, w.seq, w.hash, w.chain
            FROM (
                SELECT DISTINCT k.hash, k.chain FROM unnest(v_events, v_keys, v_chains) AS k(event, hash, chain)
                WHERE k.chain IS NOT NULL AND v_ended[k.event] IS NOT TRUE AND k.hash <> ALL (v_anybody)
            ) k
            CROSS JOIN LATERAL (
                SELECT w.instance_id, w.seq, w.hash, w.chain FROM edda_waits w
                WHERE w.hash = k.hash AND w.chain = k.chain AND w.kind = 'event' AND NOT w.due OFFSET 0
            ) w
            LIMIT p_most + 1
        ) f;
    END IF;

    IF w_seq IS NOT NULL THEN
        IF cardinality(w_seq) > p_most THEN
            WITH remaining AS (
                INSERT INTO edda_unmarked AS u (hash, seq, created_at)
                SELECT k.hash, max(o_seq[k.event]), v_now FROM unnest(v_events, v_keys) AS k(event, hash)
                WHERE v_ended[k.event] IS NOT TRUE
                GROUP BY k.hash
                RETURNING u.hash
            )
            SELECT o_more || array_agg(r.hash) INTO o_more FROM remaining r;
            w_instance := w_instance[:p_most];
            w_seq := w_seq[:p_most];
            w_hash := w_hash[:p_most];
            w_chain := w_chain[:p_most];
        END IF;
        o_hash := w_hash;
        IF v_ended IS NOT NULL THEN
            o_chain := w_chain;
            o_addressed := ARRAY(
                SELECT CASE WHEN NOT e.ended THEN e.chain END
                FROM unnest(v_chain, v_ended) WITH ORDINALITY AS e(chain, ended, at) ORDER BY e.at);
        END IF;
        SELECT s.o_apps INTO v_apps FROM edda_signal_1(v_now, false, w_instance, w_seq, w_hash) s;
        o_apps := o_apps || v_apps;
    END IF;

    -- (6) Starts, in the order of the events: the first event for a live key starts its run.
    IF cardinality(n_event) > 0 AND 0 = ANY (o_verdict) THEN
        SELECT array_agg(i.o_start_event), array_agg(DISTINCT i.o_app) INTO o_started, v_apps
        FROM edda_insert_1(
            v_now, ARRAY(SELECT o_verdict[n.event] = 0 FROM unnest(n_event) WITH ORDINALITY AS n(event, at) ORDER BY n.at),
            n_id, n_app, n_workflow, n_version, n_owner, n_chain, n_chain_started_at, n_live_key, n_priority, n_delay,
            ARRAY(SELECT o_seq[n.event] FROM unnest(n_event) WITH ORDINALITY AS n(event, at) ORDER BY n.at),
            n_parent, n_parent_seq, n_input, n_carried) i;
        o_apps := o_apps || v_apps;
    END IF;

    -- (7) Poison. The key has the last word on what is there already.
    IF cardinality(l_origin) > 0 AND NOT v_repeated THEN
        INSERT INTO edda_dead_letters (batch_id, number, origin, raw, headers, reason, attempts, created_at)
        SELECT p_batch, l.number, l.origin, l.raw, l.headers, l.reason, l.attempts, v_now
        FROM unnest(l_position, l_origin, l_raw, l_headers, l_reason, l_attempts) WITH ORDINALITY
             AS l(position, origin, raw, headers, reason, attempts, number)
        WHERE NOT coalesce(l.position = ANY (o_stale), false)
        ON CONFLICT (batch_id, number) DO NOTHING;
    END IF;
END
$$
