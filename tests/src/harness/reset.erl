%% A broker of the pool evaluates this while it runs, beside RabbitMQ (brokers.rs). Whoever connects to the socket is
%% given a virtual host that has just been made, in which the broker publishes its events, and nothing is left of the one
%% before: no connection, no queue, no remembered answer of the master.
rabbit:await_startup().
User = list_to_binary(os:getenv("ROUSE_TESTS_ACCOUNT")).
Name = fun(Number) -> iolist_to_binary(io_lib:format("rouse-~b", [Number])) end.
Reset = fun(Number) ->
    rabbit_networking:close_connections(rabbit_networking:connections(), "the test of this virtual host is over"),
    rabbit_exchange_type_event:unregister(),
    [ok = rabbit_vhost:delete(Old, User) || Old <- rabbit_vhost:list_names(), Old =/= <<"/">>],
    VHost = Name(Number),
    ok = rabbit_vhost:add(VHost, User),
    ok = rabbit_auth_backend_internal:set_permissions(User, VHost, <<".*">>, <<".*">>, <<".*">>, User),
    ok = application:set_env(rabbitmq_event_exchange, vhost, VHost),
    ok = rabbit_exchange_type_event:register(),
    ok = supervisor:terminate_child(rabbit_auth_backend_cache_app, auth_cache),
    {ok, _} = supervisor:restart_child(rabbit_auth_backend_cache_app, auth_cache),
    [] = rabbit_alarm:get_alarms(),
    VHost
end.
{ok, Listener} = gen_tcp:listen(0, [{ifaddr, {local, os:getenv("ROUSE_TESTS_RESET")}}, {active, false}]).
Serve = fun Serve(Number) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    ok = gen_tcp:send(Socket, [Reset(Number), "\n"]),
    ok = gen_tcp:close(Socket),
    Serve(Number + 1)
end.
Serve(1).
