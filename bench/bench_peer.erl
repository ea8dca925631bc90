%% The Erlang side of `qnet bench --only links`: a gen_server, and a client that calls it over distribution (TLS when started so).
-module(bench_peer).
-behaviour(gen_server).
-export([serve/0, round_trips/3, in_flight/4, bulk/3, init/1, handle_call/3, handle_cast/2]).

serve() ->
    {ok, _} = gen_server:start({local, bench}, ?MODULE, [], []),
    io:format("ready~n"),
    receive stop -> ok end.

init(_) -> {ok, none}.
handle_call({echo, Data}, _, State) -> {reply, Data, State};
handle_call({sink, _}, _, State) -> {reply, ok, State}.
handle_cast(_, State) -> {noreply, State}.

reach(Node) -> reach(Node, 100).
reach(Node, 0) -> io:format(standard_error, "cannot reach ~p~n", [Node]), halt(1);
reach(Node, Left) ->
    case net_kernel:connect_node(Node) of
        true -> ok;
        _ -> timer:sleep(50), reach(Node, Left - 1)
    end.

round_trips(Node, Count, Size) ->
    reach(Node),
    Data = binary:copy(<<0>>, Size),
    Once = fun() ->
        Begin = erlang:monotonic_time(nanosecond),
        gen_server:call({bench, Node}, {echo, Data}),
        erlang:monotonic_time(nanosecond) - Begin
    end,
    [Once() || _ <- lists:seq(1, 300)],
    Sorted = lists:sort([Once() || _ <- lists:seq(1, Count)]),
    io:format("{\"p50\": ~f, \"p99\": ~f}~n", [lists:nth(Count div 2, Sorted) / 1000, lists:nth(Count * 99 div 100, Sorted) / 1000]),
    halt(0).

in_flight(Node, Count, Size, Width) ->
    reach(Node),
    Data = binary:copy(<<0>>, Size),
    Main = self(),
    Each = Count div Width,
    {Took, _} = timer:tc(fun() ->
        Pids = [spawn_link(fun() -> [gen_server:call({bench, Node}, {echo, Data}) || _ <- lists:seq(1, Each)], Main ! {done, self()} end)
                || _ <- lists:seq(1, Width)],
        [receive {done, Pid} -> ok end || Pid <- Pids]
    end),
    io:format("{\"rate\": ~f}~n", [Each * Width / (Took / 1000000)]),
    halt(0).

bulk(Node, Count, Size) ->
    reach(Node),
    Data = crypto:strong_rand_bytes(Size),
    gen_server:call({bench, Node}, {sink, Data}),
    {Took, _} = timer:tc(fun() -> [ok = gen_server:call({bench, Node}, {sink, Data}, infinity) || _ <- lists:seq(1, Count)] end),
    io:format("{\"rate\": ~f}~n", [Count * Size / Took]),
    halt(0).
