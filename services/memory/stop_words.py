"""Function words, by primary language subtag, folded: without case and diacritics.

They stay in the index, where phrases need them, and are dropped from the words of a query. What an apostrophe cuts off
(don't, l'eau) is among them.
"""

from collections.abc import Mapping

_ENGLISH = """
a about above after again against all am an and any are as at be because been before being below between both but by
can could d did do does doing don down during each few for from further had has have having he her here hers herself
him himself his how i if in into is it its itself just ll m me more most my myself no nor not now of off on once only
or other our ours ourselves out over own re s same she should so some such t than that the their theirs them
themselves then there these they this those through to too under until up ve very was we were what when where which
while who whom whose why will with would you your yours yourself yourselves
"""
_GERMAN = """
aber als am an auch auf aus bei bin bis bist da damit dann das dass dein deine dem den denn der des die dies diese
dieser dieses doch dort du durch ein eine einem einen einer eines er es etwas euer fur hat habe haben hatte hier ich
ihm ihn ihr ihre im in ins ist ja jede jeder jedes jene jener kann kein keine konnen man mein meine mich mir mit nach
nicht noch nun nur ob oder ohne sehr sein seine sich sie sind so soll uber um und uns unser unter vom von vor wann war
waren warum was weil welche welcher welches wenn wer werden wie wieder wir wird wo wurde zu zum zur zwischen
"""
_FRENCH = """
a ai ainsi alors apres au aucun aussi autre aux avant avec avoir c car ce ceci cela celle celui ces cet cette ceux
chez ci comme comment d dans de des deux donc dont du elle elles en encore entre es est et etait ete etre eu eux fait
il ils j je l la le les leur leurs lui m ma mais me meme mes moi mon n ne ni nos notre nous on ont ou par parce pas
pendant peu plus pour pourquoi qu quand que quel quelle quelles quels qui quoi s sa sans se ses si son sont sous sur t
ta te tes toi ton tous tout toute toutes tu un une vos votre vous y
"""
_SPANISH = """
a al algo algunos ante antes como con contra cual cuando de del desde donde dos el ella ellas ellos en entre era eran
es esa esas ese eso esos esta estaba estan estas este esto estos fue fueron ha habia han hasta hay la las le les lo
los mas me mi mis mucho muy nada ni no nos nosotros o os otra otro otros para pero poco por porque que quien se sea
ser si sido sin sobre son su sus tambien te tiene tienen todo todos tu tus un una uno unos y ya yo
"""
_ITALIAN = """
a ad al alla alle agli ai allo anche avere c che chi ci come con contro cui d da dal dalla dalle dai dei del della
delle dello degli di dove e ed egli era erano essere fra gli ha hanno ho i il in io l la le lei li lo loro lui ma mi
mia mio ne nei nel nella nelle nello negli no noi non nostro o per perche piu quale quando quanto quella quelle quelli
quello questa queste questi questo se sei si sia siamo sono su sua sue sui sul sulla suo suoi ti tra tu tua tuo tutti
tutto un una uno vi voi
"""
_PORTUGUESE = """
a ao aos as ate com como da das de dela dele deles do dos e ela elas ele eles em entre era eram essa essas esse esses
esta estao estas este estes eu foi foram ha isso isto ja lhe mais mas me mesmo meu minha muito na nao nas nem no nos
nossa nosso num numa o os ou para pela pelas pelo pelos por porque quando que quem se sem ser seu seus so sobre sua
suas tambem te tem tinha tu tua um uma umas uns voce
"""
_DUTCH = """
aan al alles als ben bij daar dan dat de der deze die dit doch doen door dus een en er ge geen had heb hebben heeft
hem het hier hij hoe hun ik in is ja je kan kon maar me meer men met mij mijn na naar niet niets nog nu of om omdat
onder ons ook op over te tegen toch toen tot u uit uw van veel voor waarom wanneer want waren was wat we wel werd wie
wij wordt zal ze zich zij zijn zo zonder zou
"""

STOP_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in (
        ("en", _ENGLISH),
        ("de", _GERMAN),
        ("fr", _FRENCH),
        ("es", _SPANISH),
        ("it", _ITALIAN),
        ("pt", _PORTUGUESE),
        ("nl", _DUTCH),
    )
}
"""Languages that are not here have none; rarity weighs their words alone."""
